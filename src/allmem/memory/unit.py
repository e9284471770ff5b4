"""MemoryUnit: everything of one layer's long-term memory that distillation trains, around the inner
loop.

    q, k, v = conv(W_q x), conv(W_k x), conv(W_v x)
    q, k    = RMSNorm_head(SiLU(q)), RMSNorm_head(SiLU(k));  v = RMSNorm_head(v)
    eta     = softplus(W_eta x + b_eta) min(1, C_ref / C);   beta = sigmoid(W_beta x + b_beta)
    y       = W_o (RMSNorm_head(read) * 2 sigmoid(W_g x))

(paper section 3.2; options change norms and activations and leave out parts). It knows no positions
and nothing of the model around it: the channel-wise scale alpha belongs to the slot,
``allmem.mixers.layer``.

Letters: R rows, N slots of a call, D hidden size, H memory heads, d head size, h width, M matrices.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from allmem.config import MemoryConfig
from allmem.layout import Layout
from allmem.memory.convolution import Convolutions
from allmem.memory.inner_loop import inner_loop
from allmem.memory.projections import (
    AttentionWeights,
    Features,
    Narrowing,
    Projections,
    Written,
)
from allmem.memory.state import MemoryState, UnitState, accumulation_dtype

__all__ = ["MemoryUnit"]

NORM_EPS = 1e-6
SWIGLU_SECOND_MOMENT = 0.36
"""E|phi|^2 / h of the hidden vector phi = SiLU(a) b for a, b ~ N(0, 1), measured."""
LENGTH_EPS = 1e-6
"""Added to squared lengths, as in flash-linear-attention."""
DOWN_STD = 0.1
"""F_down starts at DOWN_STD / sqrt(h): the memory first says little beside its residual."""
BETA_BIAS = -2.0
"""Momentum decays start at sigmoid(-2) = 0.12."""


class HeadNorm(nn.Module):
    """RMSNorm over the last dimension with one learned scale per head, in fp32 (float64 for
    float64)."""

    def __init__(self, heads: int, head_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(heads, head_dim))

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., H, d]."""
        return F.rms_norm(x, x.shape[-1:], eps=NORM_EPS) * self.weight.to(x.dtype)


def unit_length(x: Tensor) -> Tensor:
    """x / |x| over the last dimension, computed in the accumulation dtype."""
    wide = x.to(accumulation_dtype(x.dtype))
    return (wide * (wide.square().sum(-1, keepdim=True) + LENGTH_EPS).rsqrt()).to(x.dtype)


class Rate(Narrowing):
    """A linear map of x to one number per output, computed in fp32 at least: small differences of a
    rate matter more than its cost."""

    def __init__(self, hidden_size: int, outputs: int) -> None:
        super().__init__()
        self.size = outputs
        self.weight = nn.Parameter(torch.zeros(outputs, hidden_size))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def narrow(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        return F.linear(x.to(dtype), self.weight.to(dtype), self.bias.to(dtype))

    def widen(self, z: Tensor) -> Tensor:
        return z


class MemoryUnit(nn.Module):
    """The long-term memory of one layer.

    Args:
        hidden_size: D.
        config: with every size filled in (``MemoryConfig.sized``).
        attention: shapes, and where known the weights, of the attention beside it: what the
            projections start from.
    """

    def __init__(self, hidden_size: int, config: MemoryConfig, attention: AttentionWeights) -> None:
        super().__init__()
        heads, head_dim, width = config.heads, config.head_dim, config.width
        assert heads is not None
        assert head_dim is not None
        assert width is not None
        self.config = config
        self.hidden_size = hidden_size
        self.heads, self.head_dim, self.width = heads, head_dim, width
        self.projections = Projections(
            hidden_size, heads, head_dim, head_dim, config, config.gate, attention
        )
        if config.conv:
            inner = heads * head_dim
            self.convolutions = Convolutions(config.conv, (inner, inner, inner))
        if config.qk_norm == "rms":
            self.q_norm = HeadNorm(heads, head_dim)
            self.k_norm = HeadNorm(heads, head_dim)
        if config.normalize_values:
            self.v_norm = HeadNorm(heads, head_dim)
        if config.output_norm:
            self.o_norm = HeadNorm(heads, head_dim)
        self.eta = Rate(hidden_size, heads * len(config.matrices))
        if config.momentum:
            self.beta = Rate(hidden_size, heads)
        shapes = {
            "gate": (heads, width, head_dim),
            "up": (heads, width, head_dim),
            "down": (heads, head_dim, width),
        }
        self.initial = nn.ParameterDict(
            {name: nn.Parameter(torch.empty(shapes[name])) for name in config.matrices}
        )
        self.reset_parameters(attention)

    @torch.no_grad()
    def reset_parameters(self, attention: AttentionWeights) -> None:
        """Starting values; the random ones from torch's global generator."""
        config = self.config
        self.projections.reset_parameters(attention)
        if config.conv:
            self.convolutions.reset_parameters()
        for norm in self.children():
            if isinstance(norm, HeadNorm):
                norm.weight.fill_(1)

        for name, weight in self.initial.items():
            fan_in = weight.shape[-1]
            # A normalised matrix stays at the norm where it starts, so it may not start tiny.
            pinned = config.norm != "none" and name in config.norm_matrices
            std = 1.0 if name != "down" or pinned else DOWN_STD
            weight.normal_(std=std / math.sqrt(fan_in))

        self.eta.weight.zero_()
        # The inverse of softplus; log(expm1(y)) loses nothing down to y = 1e-30 in float64.
        biases = torch.tensor([math.log(math.expm1(rate)) for rate in self._starting_rates()])
        self.eta.bias.copy_(biases.repeat(self.heads))
        if config.momentum:
            self.beta.weight.zero_()
            self.beta.bias.fill_(BETA_BIAS)

    def _starting_rates(self) -> list[float]:
        """One for every matrix."""
        config = self.config
        if config.base_rate is not None:
            return [config.base_rate] * len(config.matrices)
        # E|phi|^2 bounds the curvature of the inner loss in F_down: a step of ``step`` times its
        # inverse moves one token's prediction that fraction of the way to its value.
        if config.network == "swiglu":
            curvature = SWIGLU_SECOND_MOMENT * self.width
        else:
            curvature = float(self.head_dim)
        return [
            config.step * (1 if name == "down" else config.step_ratio) / curvature
            for name in config.matrices
        ]

    def begin(self, rows: int, dtype: torch.dtype, *, shared: bool = False) -> UnitState:
        """The state before the first token; F_0 keeps its gradient.

        Args:
            dtype: that of x.
            shared: as ``MemoryState.begin`` has it.
        """
        tails = self.convolutions.begin(rows, dtype) if self.config.conv else {}
        # Of the items: torch's compiler takes a ParameterDict itself for a list of pairs.
        initial, momentum = dict(self.initial.items()), self.config.momentum
        return UnitState(MemoryState.begin(initial, rows, momentum, shared=shared), tails)

    def forward(
        self,
        x: Tensor,
        state: UnitState,
        layout: Layout,
        features: Features | None = None,
        written: Written | None = None,
    ) -> tuple[Tensor, UnitState]:
        """Read and write every token.

        Args:
            x: [R, N, D], the hidden states that enter the attention.
            state: consumed.
            features: the attention's q, k, v before RoPE; only ``projections = "shared"`` reads
            them.
            written: what every slot writes, if it is not what it reads.

        Returns:
            [R, N, D] (arbitrary but finite in padding slots) and the state after the call.
        """
        # Padding may hold anything; from here on it holds zeros.
        if not layout.full:
            x = torch.where(layout.valid[..., None], x, 0)
        written = Written(x) if written is None else written
        tokens, tails = self.tokens(x, state, layout, features, written)
        # Autocast would do the sums of the inner loop in half precision.
        with torch.autocast(x.device.type, enabled=False):
            read, memory = inner_loop(
                *tokens, state.memory, dict(self.initial.items()), layout, self.config
            )
            if self.config.output_norm:
                read = self.o_norm(read)
            read = read.flatten(2)
        if self.config.gate:
            read = read * (2 * torch.sigmoid(self.projections.gate(x)))
        return self.projections.output(read, features), UnitState(memory, tails)

    def tokens(
        self,
        x: Tensor,
        state: UnitState,
        layout: Layout,
        features: Features | None,
        written: Written,
    ) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor, Tensor], dict[str, Tensor]]:
        """What the inner loop reads and writes: q, k, v [R, N, H, d], eta [R, N, H, M] and beta
        [R, N, H]; and the convolutions' tails after the call."""
        projected = self.projections.inputs(x, layout, features, written)
        tails: dict[str, Tensor] = {}
        if self.config.conv:
            projected, tails = self.convolutions.apply_to(projected, state.tails, layout)
        q, k, v = (self._split_heads(projected[name]) for name in ("q", "k", "v"))
        with torch.autocast(x.device.type, enabled=False):
            if self.config.feature_activation:
                q, k = F.silu(q), F.silu(k)
            if self.config.qk_norm == "rms":
                q, k = self.q_norm(q), self.k_norm(k)
            elif self.config.qk_norm == "l2":
                q, k = unit_length(q), unit_length(k)
            if self.config.value_activation:
                v = F.silu(v)
            if self.config.normalize_values:
                v = self.v_norm(v)
            eta, beta = self.rates(written, layout.chunk)
        return (q, k, v, eta, beta), tails

    def rates(self, written: Written, chunk: int | None = None) -> tuple[Tensor, Tensor]:
        """The inner learning rates eta [R, N, H, M] and momentum decays beta [R, N, H] of every
        token; 0 where none is written.

        Args:
            chunk: C, if it is not the configured one; rates are scaled by min(1, C_ref / C).
        """
        scale = min(1.0, self.config.reference_chunk / (chunk or self.config.chunk))
        eta = F.softplus(written.mapped(self.eta)) * scale
        eta = eta.unflatten(-1, (self.heads, -1))
        beta = torch.zeros_like(eta[..., 0])
        if self.config.momentum:
            beta = written.mapped(self.beta).sigmoid()
        if written.keep is not None:
            eta, beta = eta * written.keep[..., None, None], beta * written.keep[..., None]
        return eta, beta

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, self.head_dim))
