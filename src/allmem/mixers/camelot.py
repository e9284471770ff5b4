"""``camelot``: token modes that need no training, after CAMELoT (He et al. 2024, arXiv:2402.13449).

A KV head keeps M modes: the mean of the keys and of the values of the tokens that joined it, how
many they are, and when the last one came. A token that leaves the window joins the mode whose key
is most similar to its own, if their cosine is above R:

    k_m <- (n_m k_m + k) / (n_m + 1);   v_m <- (n_m v_m + v) / (n_m + 1);   n_m <- n_m + 1

else it takes the place of the mode that has waited longest. A query sees its window, its sinks and
the modes in *one* softmax. The window's share of it is computed without the modes, so the memory
says what they change: with m what the modes alone give a head, a what the window alone gives it,

    y = W_o (s (m - a)),     s = Z_m / (Z_m + Z_w)

where Z are the sums of exp(score). At alpha = 1, where the layer starts, attention and memory add
up to that one softmax. So nothing is trained: there are no weights here but the attention's.

Keys are compared and kept before RoPE; a query meets a mode as it meets a sink, just before the
window. Every token is written on its own, in order, when the window loses it, so the tokens of a
call are gone through one by one: fast enough for a small window on a CPU, slow on a GPU. The
original writes a segment after all of it was read, and a segment reads only the modes nearest to
its keys; here a query reads all, or the ``top`` ones.

Letters: R rows, N slots of a call, D hidden size, Q query heads, K KV heads, G = Q / K, E head
size, M modes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from allmem.config import Options, require_choice, require_positive
from allmem.errors import AllMemError
from allmem.layout import Layout
from allmem.memory.projections import AttentionWeights, Beside, Features, Leaving, Wanted
from allmem.memory.state import accumulation_dtype
from allmem.mixers.base import Capabilities, Mixer
from allmem.mixers.modes import Modes, read_modes, write_modes
from allmem.mixers.registry import MemoryKind, register_memory
from allmem.state import State

__all__ = ["CamelotMixer", "CamelotOptions"]

Weigh = Literal["mode", "token"]

BLOCK = 64
"""Tokens that are read together; they are written one by one."""


@dataclass(frozen=True)
class CamelotOptions(Options):
    """Options of the token modes.

    Raises:
        AllMemError: on a value outside its range.
    """

    state_sizes: ClassVar[tuple[str, ...]] = ("slots",)

    slots: int = 512
    """Modes of a KV head: M."""
    threshold: float = 0.95
    """Cosine above which a token joins a mode: R. At 1 none does, and the modes are the last M
    tokens that the window lost."""
    top: int | None = None
    """Modes that a query sees, those with the highest scores; ``None`` for all."""
    weigh: Weigh = "mode"
    """Whether a mode counts in the softmax as one key, or as the tokens that joined it."""

    def __post_init__(self) -> None:
        name = type(self).__name__
        require_positive(name, slots=self.slots, top=self.top)
        require_choice(name, "weigh", self.weigh, get_args(Weigh))
        if not 0 < self.threshold <= 1:
            raise AllMemError(
                f"{name}: threshold = {self.threshold!r} must be a cosine above 0 and at most 1; "
                "1 joins no tokens"
            )


class CamelotMixer(Mixer):
    """Consolidated tokens in the softmax of the attention beside them.

    Args:
        options: what to keep.
        attention: the attention beside it.
    """

    capabilities = Capabilities(constant_state=True, trainable=False)
    wants = Wanted.BESIDE
    initial_alpha = 1.0

    def __init__(
        self, hidden_size: int, options: CamelotOptions, attention: AttentionWeights
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.options = options
        self.query_heads, self.kv_heads = attention.query_heads, attention.kv_heads
        self.head_dim = attention.head_dim

    def init_state(self, rows: int, dtype: torch.dtype, device: torch.device) -> Modes:
        shape = (rows, self.kv_heads, self.options.slots)
        size = 2 * self.head_dim
        means = torch.zeros(*shape, size, dtype=accumulation_dtype(dtype), device=device)
        counts = torch.zeros(shape, dtype=torch.int32, device=device)
        # Empty modes are the oldest, the first of them first.
        used = torch.arange(-shape[2], 0, dtype=torch.int32, device=device)
        return Modes(means, counts, used.expand(shape).contiguous())

    def forward(
        self, x: Tensor, state: State, layout: Layout, features: Features | None = None
    ) -> tuple[Tensor, Modes]:
        assert isinstance(state, Modes)
        if features is None or features.beside is None or features.leaving is None:
            raise AllMemError(
                "camelot joins the softmax of a window attention: it has to stand beside one, "
                "alone, as mixers = 'camelot' does"
            )
        beside = features.beside
        with torch.autocast(x.device.type, enabled=False):
            found, mass, state = self._go_through(beside, features.leaving, state, layout)
            share = torch.sigmoid(mass - beside.mass.to(mass.dtype))[..., None]
            change = share * (found - beside.read.to(found.dtype))
        change = change.transpose(1, 2).flatten(2).to(x.dtype)
        return F.linear(change, features.output), state

    def _go_through(
        self, beside: Beside, leaving: Leaving, state: Modes, layout: Layout
    ) -> tuple[Tensor, Tensor, Modes]:
        """Write and read all tokens.

        Returns:
            What the modes give every query, [R, Q, N, E], the logarithm of their sum of
            exp(score), [R, Q, N], and the state after the call.
        """
        wide = state.means.dtype
        q = beside.q.to(wide)
        if not layout.full:
            q = torch.where(layout.valid[:, None, :, None], q, 0)
        q = q.unflatten(1, (self.kv_heads, -1)).transpose(2, 3)  # [R, K, N, G, E]
        pairs = torch.cat([leaving.k, leaving.v], -1).to(wide)
        pairs = torch.where(leaving.leaves[:, None, :, None], pairs, 0)
        found, mass = [], []
        for first in range(0, layout.slots, BLOCK):
            now = slice(first, first + BLOCK)
            state, displaced = write_modes(
                pairs[:, :, now],
                leaving.leaves[:, now],
                layout.positions[:, now],
                state,
                self.options.threshold,
            )
            read, total = read_modes(
                q[:, :, now], state, displaced, self.options.top, self.options.weigh == "token"
            )
            found.append(read)
            mass.append(total)
        return torch.cat(found, 2), torch.cat(mass, 2), state

    def carry(self, old: State, new: State) -> Modes:
        """The modes, older than all of the other text, in their order."""
        assert isinstance(old, Modes)
        order = old.used.argsort(-1).argsort(-1) - self.options.slots
        return Modes(old.means, old.counts, order.to(old.used.dtype))

    def state_bytes(self, tokens: int, dtype: torch.dtype) -> int:
        modes = self.kv_heads * self.options.slots
        numbers = 2 * torch.int32.itemsize
        return modes * (2 * self.head_dim * accumulation_dtype(dtype).itemsize + numbers)

    def flops(self, tokens: int) -> int:
        return sum(self.flops_by_part(tokens).values())

    def flops_by_part(self, tokens: int) -> dict[str, int]:
        """All modes for every token, since what is empty at first is computed too. The window's
        scores are not counted a second time: a kernel has their sum for nothing."""
        mode = self.options.slots * self.head_dim
        return {
            "memory output": tokens * 2 * self.query_heads * self.head_dim * self.hidden_size,
            "memory read": tokens * 4 * self.query_heads * mode,
            "memory write": tokens * 2 * self.kv_heads * mode,
        }


register_memory(MemoryKind("camelot", CamelotOptions, CamelotMixer))
