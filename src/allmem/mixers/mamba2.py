"""``mamba2``: the state space dual of Mamba-2 (Dao and Gu 2024, arXiv:2405.21060).

    S_t = exp(-exp(A) dt_t) S_{t-1} + dt_t B_t x_t^T        y_t = S_t^T C_t + D x_t
    dt_t = softplus(W_dt h_t + c)

with C, B and x where the other memories have q, k and v, which therefore start from the attention's
weights as in Mamba in the Llama (Wang et al. 2024, arXiv:2408.15237). A, c and D are one number for
each head; c and D start as in Mamba-2, A such that heads forget in 1 to 30 windows. Every head has
a B and a C of its own, the convolution has no bias, and the output norm stands before the gate,
head by head; in Mamba-2 it stands behind it.

The skip D x_t is of the token that is written with the query. With ``write_scope = evicted`` that
is the one that just left the window, and nothing where none did: so a memory always is the function
of the tokens that it wrote. ``ahn_mamba2`` (``allmem.mixers.matrix``) has no skip, as there.

Letters: R rows, N slots of a call, D hidden size, H heads, d size of B and C, dv of x.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from allmem.config import KeyNorm
from allmem.memory.projections import AttentionWeights
from allmem.memory.unit import Rate
from allmem.mixers.heads import Heads
from allmem.mixers.matrix import (
    AHN,
    MatrixMixer,
    MatrixOptions,
    spread_speeds,
)
from allmem.mixers.recurrence import block_flops, linear_rule
from allmem.mixers.registry import MemoryKind, register_memory

__all__ = ["Mamba2Mixer", "Mamba2Options"]

SHORTEST, LONGEST = 0.001, 0.1
"""Time steps start log-uniform between these."""
SPEEDS = (1.0, 16.0)
"""exp(A) starts uniform between these if decays are to start as in Mamba-2: beside a window of 4096
every head has then forgotten what leaves it."""


@dataclass(frozen=True)
class Mamba2Options(MatrixOptions):
    """Options of Mamba-2.

    Raises:
        AllMemError: on a value outside its range.
    """

    qk_norm: KeyNorm = "none"
    """What C and B are divided by, head by head: their length, their root mean square (with a
    learned scale) or nothing."""
    skip: bool = True
    """Whether D x_t is added to what is read."""


class Mamba2Mixer(MatrixMixer):
    """A matrix for each head that forgets the faster the more it writes."""

    # Small numbers whose rounding matters.
    keep_fp32 = ("step", "log_speed", "skip")

    def __init__(
        self, hidden_size: int, options: Mamba2Options, attention: AttentionWeights
    ) -> None:
        super().__init__(hidden_size, options, attention)
        heads = self.shell.heads
        self.step = Rate(hidden_size, heads)
        self.log_speed = nn.Parameter(torch.empty(heads))
        self.skip = nn.Parameter(torch.ones(heads)) if options.skip else None
        self.reset_rates()

    @torch.no_grad()
    def reset_rates(self) -> None:
        """Starting values from torch's global generator."""
        steps = SHORTEST * (LONGEST / SHORTEST) ** torch.rand(self.shell.heads)
        # The inverse of softplus.
        self.step.bias.copy_(steps.expm1().log())
        if self.decay_window is None:
            self.log_speed.uniform_(*SPEEDS).log_()
        else:
            # exp(A) dt is what a head forgets in a token.
            self.log_speed.copy_((spread_speeds(len(steps), self.decay_window) / steps).log())

    def rule(self, heads: Heads, matrix: Tensor) -> tuple[Tensor, Tensor]:
        step = heads.kept(F.softplus(heads.mapped(self.step)).mT)  # [R, H, N]
        log_decay = -self.log_speed.to(step.dtype).exp()[:, None] * step
        k = heads.k * step[..., None]
        block = self.options.block
        read, matrix = linear_rule(heads.q, k, heads.v, log_decay, matrix, block, heads.dtype)
        if self.skip is not None:
            read = read + self.skip.to(read.dtype)[:, None, None] * heads.v
        return read, matrix

    def rule_flops(self, tokens: int) -> int:
        return block_flops(tokens, self.options.block, *self.matrix_shape, delta=False)


register_memory(MemoryKind("mamba2", Mamba2Options, Mamba2Mixer))
register_memory(MemoryKind("ahn_mamba2", Mamba2Options, Mamba2Mixer, {**AHN, "skip": False}))
