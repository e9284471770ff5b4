"""``gla``: Gated Linear Attention (Yang et al. 2023, arXiv:2312.06635), decay without correction.

    S_t = diag(a_t) S_{t-1} + k_t v_t^T        o_t = S_t^T q_t d^{-1/2}
    log a_t = log sigmoid(U V x_t + c) / 16

with one a_t for each channel of the keys, and V of rank 16. Unlike there, U starts at zero and c
such that the channels of a head forget at different speeds: the original's c = 0 has every channel
forget half in 16 tokens, which the window beside it sees anyway. Its q, k and v are not convolved;
here they are, as in all memories (``conv=0, activation=False`` for the original).

Letters: R rows, N slots of a call, D hidden size, H heads, d size of keys, dv of values.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from allmem.config import KeyNorm, require_positive
from allmem.errors import AllMemError
from allmem.memory.projections import AttentionWeights
from allmem.mixers.heads import Heads
from allmem.mixers.matrix import (
    LowRankRate,
    MatrixMixer,
    MatrixOptions,
    spread_speeds,
)
from allmem.mixers.recurrence import CHANNEL_BLOCK, block_flops, linear_rule
from allmem.mixers.registry import MemoryKind, register_memory

__all__ = ["ChannelDecay", "GlaMixer", "GlaOptions"]


class ChannelDecay(LowRankRate):
    """log a_t of every channel of every head.

    Args:
        heads, channels: H, and how many decays each has.
        normaliser: what the logarithm is divided by, so that weak decays are easy to learn.
        window: see ``spread_speeds``.
    """

    def __init__(
        self,
        hidden_size: int,
        heads: int,
        channels: int,
        rank: int,
        normaliser: float,
        window: int | None,
    ) -> None:
        super().__init__(hidden_size, heads * channels, rank)
        self.heads, self.normaliser = heads, normaliser
        with torch.no_grad():
            # log sigmoid(c) = -softplus(-c)
            start = -(spread_speeds(channels, window) * normaliser).expm1().log()
            self.bias.copy_(start.repeat(heads))

    def widen(self, z: Tensor) -> Tensor:
        """[R, N, rank] to [R, H, N, channels], at most 0."""
        log_decay = F.logsigmoid(super().widen(z)) / self.normaliser
        return log_decay.unflatten(-1, (self.heads, -1)).transpose(1, 2)


@dataclass(frozen=True)
class GlaOptions(MatrixOptions):
    """Options of Gated Linear Attention.

    Raises:
        AllMemError: on a value outside its range.
    """

    qk_norm: KeyNorm = "none"
    """What q and k are divided by, head by head: their length, their root mean square (with a
    learned scale) or nothing."""
    decay_rank: int = 16
    """Rank of what maps x to the decays."""
    normaliser: float = 16.0
    """What log sigmoid is divided by."""

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        require_positive(name, decay_rank=self.decay_rank)
        if not self.normaliser > 0:
            raise AllMemError(f"{name}: normaliser = {self.normaliser!r} must be positive")


class GlaMixer(MatrixMixer):
    """A matrix for each head, every row of which forgets at a rate of its own."""

    # Small numbers whose rounding matters.
    keep_fp32 = ("decay",)

    def __init__(self, hidden_size: int, options: GlaOptions, attention: AttentionWeights) -> None:
        super().__init__(hidden_size, options, attention)
        self.block = min(options.block, CHANNEL_BLOCK)
        heads, channels = self.shell.heads, self.shell.key_dim
        self.decay = ChannelDecay(
            hidden_size,
            heads,
            channels,
            options.decay_rank,
            options.normaliser,
            self.decay_window,
        )

    def rule(self, heads: Heads, matrix: Tensor) -> tuple[Tensor, Tensor]:
        decay = heads.kept(heads.mapped(self.decay))
        q = heads.q * self.shell.key_dim**-0.5
        return linear_rule(q, heads.k, heads.v, decay, matrix, self.block, heads.dtype)

    def rule_flops(self, tokens: int) -> int:
        return block_flops(tokens, self.block, *self.matrix_shape, delta=False)


register_memory(MemoryKind("gla", GlaOptions, GlaMixer))
