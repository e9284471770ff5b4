"""What stands around the rule of every memory but the paper's: projections that start from the
attention's, convolutions, norms, output norm and gate (``HeadShell``), and the mixer that they and
a rule make together (``HeadMixer``).

    q, k, v = conv(W_q x), conv(W_k x), conv(W_v x)
    q, k, v = SiLU(q) / |q|, SiLU(k) / |k|, SiLU(v)
    y       = W_o (RMSNorm_head(o) gate(W_g x))

They are the same for all, so that a comparison of two memories is one of their rules.

Letters: R rows, N slots of a call, D hidden size, H memory heads, d head size of queries and keys,
dv of values.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from allmem.config import HeadOptions
from allmem.layout import Layout
from allmem.memory.convolution import Convolutions
from allmem.memory.projections import (
    AttentionWeights,
    Features,
    Narrowing,
    Projections,
    Wanted,
    Written,
)
from allmem.memory.state import accumulation_dtype
from allmem.memory.unit import HeadNorm, unit_length
from allmem.mixers.base import MemoryMixer
from allmem.state import State

__all__ = ["HeadMixer", "HeadShell", "HeadState", "Heads"]


@dataclass(frozen=True)
class Heads:
    """What a rule reads and writes in one call."""

    q: Tensor
    """[R, H, N, d], in the accumulation dtype; so are ``k`` and ``v``."""
    k: Tensor
    """[R, H, N, d], 0 where nothing is written."""
    v: Tensor
    """[R, H, N, dv], 0 where nothing is written."""
    written: Written
    """What k and v are of."""
    tails: dict[str, Tensor]
    """Of the convolutions, after the call."""
    dtype: torch.dtype
    """Of the hidden states."""

    def mapped(self, by: Narrowing) -> Tensor:
        """What a map makes of the hidden states that are written; it has to be a submodule of the
        mixer."""
        return self.written.mapped(by)

    def kept(self, rate: Tensor, otherwise: float = 0.0) -> Tensor:
        """A rate [R, H, N, ...], with ``otherwise`` where nothing is written."""
        keep = self.written.keep
        if keep is None:
            return rate
        keep = keep.view(keep.shape[0], 1, -1, *[1] * (rate.dim() - 3))
        return torch.where(keep, rate, otherwise)


class HeadShell(nn.Module):
    """Projections, convolutions, norms and gate around a rule.

    Args:
        hidden_size: D.
        options: with every size filled in (``HeadOptions.sized``).
        attention: shapes, and where known the weights, of the attention beside it.
    """

    def __init__(self, hidden_size: int, options: HeadOptions, attention: AttentionWeights) -> None:
        super().__init__()
        heads, key_dim, value_dim = options.heads, options.key_dim, options.value_dim
        assert heads is not None
        assert key_dim is not None
        assert value_dim is not None
        self.options = options
        self.heads, self.key_dim, self.value_dim = heads, key_dim, value_dim
        self.projections = Projections(
            hidden_size, heads, key_dim, value_dim, options, options.gate != "none", attention
        )
        if options.conv:
            keys, values = heads * key_dim, heads * value_dim
            self.convolutions = Convolutions(options.conv, (keys, keys, values))
        if options.qk_norm == "rms":
            self.q_norm = HeadNorm(heads, key_dim)
            self.k_norm = HeadNorm(heads, key_dim)
        self.o_norm = HeadNorm(heads, value_dim)
        self.reset_parameters(attention)

    @torch.no_grad()
    def reset_parameters(self, attention: AttentionWeights) -> None:
        """Starting values; the random ones from torch's global generator."""
        self.projections.reset_parameters(attention)
        if self.options.conv:
            self.convolutions.reset_parameters()
        if self.options.gate == "silu":
            # SiLU(0) = 0 would let nothing through, gradients neither.
            for weight in self.projections.g.parameters():  # type: ignore[union-attr]
                weight.normal_(std=weight.shape[1] ** -0.5)

    def begin(self, rows: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """The tails of the convolutions before the first token."""
        return self.convolutions.begin(rows, dtype) if self.options.conv else {}

    def inputs(
        self,
        x: Tensor,
        tails: dict[str, Tensor],
        layout: Layout,
        features: Features | None = None,
        written: Written | None = None,
    ) -> Heads:
        """Queries of what is read, keys and values of what is written.

        Args:
            x: [R, N, D], zero in padding slots.
        """
        if written is None:
            written = Written(x, None if layout.full else layout.valid)
        projected = self.projections.inputs(x, layout, features, written)
        after: dict[str, Tensor] = {}
        if self.options.conv:
            projected, after = self.convolutions.apply_to(projected, tails, layout)
        wide = accumulation_dtype(x.dtype)
        q, k, v = (
            projected[name].unflatten(-1, (self.heads, -1)).to(wide) for name in ("q", "k", "v")
        )
        if self.options.activation:
            q, k, v = F.silu(q), F.silu(k), F.silu(v)
        if self.options.qk_norm == "rms":
            q, k = self.q_norm(q), self.k_norm(k)
        elif self.options.qk_norm == "l2":
            q, k = unit_length(q), unit_length(k)
        if written.keep is not None:
            # The convolutions go on into the padding behind a row.
            k, v = (torch.where(written.keep[..., None, None], t, 0) for t in (k, v))
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return Heads(q, k, v, written, after, x.dtype)

    def output(
        self,
        read: Tensor,
        x: Tensor,
        features: Features | None,
        scale: Tensor | None = None,
    ) -> Tensor:
        """What the rule read, [R, H, N, dv], back in the hidden size: [R, N, D].

        Args:
            x: [R, N, D], zero in padding slots.
            scale: [H], what every head is multiplied by after its norm.
        """
        read = self.o_norm(read.transpose(1, 2))
        if scale is not None:
            read = read * scale[:, None]
        read = read.flatten(2).to(x.dtype)
        if self.options.gate == "sigmoid":
            read = read * (2 * torch.sigmoid(self.projections.gate(x)))
        elif self.options.gate == "silu":
            read = read * F.silu(self.projections.gate(x))
        return self.projections.output(read, features)

    def tail_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of one sequence's tails."""
        taps = max(self.options.conv - 1, 0)
        return taps * self.heads * (2 * self.key_dim + self.value_dim) * dtype.itemsize


@dataclass
class HeadState(State):
    """What one sequence leaves behind; a subclass adds what its rule remembers."""

    tails: dict[str, Tensor] = field(default_factory=dict, kw_only=True)
    """Of the convolutions. ``HeadMixer`` keeps them: rules neither read nor set them."""


AnyState = TypeVar("AnyState", bound=HeadState)


class HeadMixer(MemoryMixer, Generic[AnyState]):
    """A rule in its shell.

    A subclass says what it remembers (``begin``, ``carried``) and what one call does with that
    (``mix``), and adds to ``state_bytes`` and ``flops_by_part`` what it costs.

    Args:
        hidden_size: D.
        options: sizes left ``None`` follow the model.
        attention: the attention beside it.
    """

    options: HeadOptions
    """With every size filled in."""

    def __init__(self, hidden_size: int, options: HeadOptions, attention: AttentionWeights) -> None:
        super().__init__()
        self.options = options.sized(hidden_size, attention.kv_heads)
        self.shell = HeadShell(hidden_size, self.options, attention)
        if options.projections == "shared":
            self.wants = Wanted.FEATURES

    @abstractmethod
    def begin(self, rows: int, dtype: torch.dtype, device: torch.device) -> AnyState:
        """As ``init_state``, without tails."""

    @abstractmethod
    def mix(self, heads: Heads, state: AnyState, layout: Layout) -> tuple[Tensor, AnyState]:
        """Write and read the tokens of one call; runs outside of autocast.

        Returns:
            What was read, [R, H, N, dv], and the state after the call, without tails.
        """

    def carried(self, old: AnyState, new: AnyState) -> AnyState:
        """As ``carry``, but for the tails, which begin anew."""
        return old

    def output(self, read: Tensor, x: Tensor, features: Features | None) -> Tensor:
        """As ``HeadShell.output``."""
        return self.shell.output(read, x, features)

    def narrowings(self) -> list[Narrowing]:
        written = self.shell.projections.narrowings()
        return [] if written is None else [*written, *self._rates()]

    def _rates(self) -> list[Narrowing]:
        return [child for child in self.children() if isinstance(child, Narrowing)]

    def init_state(self, rows: int, dtype: torch.dtype, device: torch.device) -> AnyState:
        return replace(self.begin(rows, dtype, device), tails=self.shell.begin(rows, dtype))

    def forward(
        self,
        x: Tensor,
        state: State,
        layout: Layout,
        features: Features | None = None,
        written: Written | None = None,
    ) -> tuple[Tensor, AnyState]:
        before = cast("AnyState", state)
        # Padding may hold anything; from here on it holds zeros.
        if not layout.full:
            x = torch.where(layout.valid[..., None], x, 0)
        heads = self.shell.inputs(x, before.tails, layout, features, written)
        # Autocast would do the sums of the rule in half precision.
        with torch.autocast(x.device.type, enabled=False):
            read, after = self.mix(heads, before, layout)
        return self.output(read, x, features), replace(after, tails=heads.tails)

    def carry(self, old: State, new: State) -> AnyState:
        begun = cast("AnyState", new)
        return replace(self.carried(cast("AnyState", old), begun), tails=begun.tails)

    def state_bytes(self, tokens: int, dtype: torch.dtype) -> int:
        """Of the tails; a subclass adds its own."""
        return self.shell.tail_bytes(dtype)

    def flops_by_part(self, tokens: int) -> dict[str, int]:
        """Of the projections and rates; a subclass adds its own."""
        rates = self._rates()
        # Biases multiply nothing.
        weights = sum(p.numel() for rate in rates for p in rate.parameters() if p.dim() == 2)
        parts = {"memory projections": tokens * self.shell.projections.flops()}
        return {**parts, "memory rates": tokens * 2 * weights} if rates else parts
