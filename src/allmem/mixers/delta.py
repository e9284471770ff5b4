"""``deltanet``, ``gated_deltanet`` and ``kda``: memories that write by the delta rule.

    S_t = diag(a_t) S_{t-1} + b_t k_t (v_t - (diag(a_t) S_{t-1})^T k_t)^T
    o_t = S_t^T q_t d^{-1/2}
    b_t = sigmoid(W_b x_t);   log a_t = -exp(A) softplus(W_a x_t + c)

DeltaNet (Yang et al. 2024, arXiv:2406.06484) has a_t = 1, Gated DeltaNet (arXiv:2412.06464) one a_t
for each head, Kimi Delta Attention (arXiv:2510.26692) one for each channel of the keys, with a W_a
of low rank. Unlike theirs, the rates start the same for all tokens, and A at zero.
``ahn_deltanet`` and ``ahn_gated_deltanet`` write what leaves the window (``allmem.mixers.matrix``).

Letters: R rows, N slots of a call, D hidden size, H heads, d size of keys, dv of values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from allmem.config import require_choice, require_positive
from allmem.errors import AllMemError
from allmem.memory.projections import AttentionWeights
from allmem.memory.unit import Rate
from allmem.mixers.heads import Heads
from allmem.mixers.matrix import (
    AHN,
    LowRankRate,
    MatrixMixer,
    MatrixOptions,
    spread_speeds,
)
from allmem.mixers.recurrence import CHANNEL_BLOCK, block_flops, delta_rule
from allmem.mixers.registry import MemoryKind, register_memory

__all__ = ["DeltaMixer", "DeltaOptions"]

Decay = Literal["none", "head", "channel"]


@dataclass(frozen=True)
class DeltaOptions(MatrixOptions):
    """Options of the memories that write by the delta rule.

    Raises:
        AllMemError: on a value outside its range.
    """

    decay: Decay = "head"
    """What forgets at a rate of its own: nothing, a head, or a channel of its keys."""
    decay_rank: int = 16
    """Rank of W_a where channels decay: that of GLA. KDA takes its head size, which beside wide
    heads would leave few parameters for anything else."""

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        require_choice(name, "decay", self.decay, get_args(Decay))
        require_positive(name, decay_rank=self.decay_rank)
        if self.qk_norm != "l2":
            raise AllMemError(
                f"{name}: qk_norm = {self.qk_norm!r} lets keys grow longer than one, and the delta "
                "rule then explodes; leave qk_norm = 'l2'"
            )


class DeltaMixer(MatrixMixer):
    """A matrix for each head, written by the delta rule."""

    # Small numbers whose rounding matters.
    keep_fp32 = ("rate", "decay", "log_speed")

    def __init__(
        self, hidden_size: int, options: DeltaOptions, attention: AttentionWeights
    ) -> None:
        super().__init__(hidden_size, options, attention)
        self.forgets = options.decay
        heads = self.shell.heads
        self.rate = Rate(hidden_size, heads)
        if self.forgets == "none":
            return
        if self.forgets == "head":
            self.decay: Rate | LowRankRate = Rate(hidden_size, heads)
        else:
            channels = heads * self.shell.key_dim
            self.decay = LowRankRate(hidden_size, channels, options.decay_rank)
        self.log_speed = nn.Parameter(torch.zeros(heads))
        self.reset_decay()

    @torch.no_grad()
    def reset_decay(self) -> None:
        """Decays at the start: the same for all tokens, spread over the heads, or over the channels
        of each head."""
        heads = self.shell.heads
        if self.forgets == "channel":
            speeds = spread_speeds(self.shell.key_dim, self.decay_window).repeat(heads)
        else:
            speeds = spread_speeds(heads, self.decay_window)
        # The inverse of softplus.
        self.decay.bias.copy_(speeds.expm1().log())

    def rule(self, heads: Heads, matrix: Tensor) -> tuple[Tensor, Tensor]:
        rate = heads.kept(heads.mapped(self.rate).sigmoid().mT)
        decay = None
        if self.forgets != "none":
            decay = heads.kept(self._log_decay(heads.mapped(self.decay)))
        q = heads.q * self.shell.key_dim**-0.5
        return delta_rule(q, heads.k, heads.v, rate, decay, matrix, self.options.block, heads.dtype)

    def _log_decay(self, mapped: Tensor) -> Tensor:
        """log a_t, [R, H, N] or [R, H, N, d], of W_a x_t + c."""
        speed = F.softplus(mapped).unflatten(-1, (self.shell.heads, -1))
        log_decay = -self.log_speed.to(speed.dtype).exp()[:, None] * speed  # [R, N, H, 1 or d]
        log_decay = log_decay.transpose(1, 2)
        return log_decay if self.forgets == "channel" else log_decay[..., 0]

    def rule_flops(self, tokens: int) -> int:
        block = self.options.block
        if self.forgets == "channel":
            block = min(block, CHANNEL_BLOCK)
        return block_flops(tokens, block, *self.matrix_shape, delta=True)


register_memory(MemoryKind("deltanet", DeltaOptions, DeltaMixer, {"decay": "none"}))
register_memory(MemoryKind("gated_deltanet", DeltaOptions, DeltaMixer))
register_memory(MemoryKind("kda", DeltaOptions, DeltaMixer, {"decay": "channel"}))
register_memory(MemoryKind("ahn_deltanet", DeltaOptions, DeltaMixer, {**AHN, "decay": "none"}))
register_memory(MemoryKind("ahn_gated_deltanet", DeltaOptions, DeltaMixer, AHN))
