"""``deltanet``, ``gated_deltanet`` and ``kda``: memories that write by the delta rule.

    S_t = diag(a_t) S_{t-1} + b_t k_t (v_t - (diag(a_t) S_{t-1})^T k_t)^T        o_t = S_t^T q_t
    b_t = sigmoid(W_b x_t);   log a_t = -exp(A) softplus(W_a x_t + c)

DeltaNet (Yang et al. 2024, arXiv:2406.06484) has a_t = 1, Gated DeltaNet (arXiv:2412.06464) one a_t
for each head, Kimi Delta Attention (arXiv:2510.26692) one for each channel of the keys.

Letters: R rows, N slots of a call, D hidden size, H heads, d size of keys, dv of values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from allmem.config import HeadOptions, require_choice, require_positive
from allmem.layout import Layout
from allmem.memory.projections import AttentionWeights, Features, Written
from allmem.memory.state import accumulation_dtype
from allmem.memory.unit import Rate
from allmem.mixers.base import MemoryMixer
from allmem.mixers.heads import HeadShell
from allmem.mixers.recurrence import CHANNEL_BLOCK, block_flops, delta_rule
from allmem.mixers.registry import MemoryKind, register_memory
from allmem.state import State

__all__ = ["DeltaMixer", "DeltaOptions", "DeltaState"]

Decay = Literal["none", "head", "channel"]

SLOWEST, FASTEST = 0.001, 0.1
"""Decays start spread between exp(-SLOWEST) and exp(-FASTEST), as in Mamba-2."""


@dataclass(frozen=True)
class DeltaOptions(HeadOptions):
    """Options of the memories that write by the delta rule.

    Raises:
        AllMemError: on a value outside its range.
    """

    decay: Decay = "head"
    """What forgets at a rate of its own: nothing, a head, or a channel of its keys."""
    block: int = 64
    """Tokens that are computed together; 16 where channels decay. It changes the speed, not the
    result."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice(type(self).__name__, "decay", self.decay, get_args(Decay))
        require_positive(type(self).__name__, block=self.block)


@dataclass
class DeltaState(State):
    """What one sequence leaves behind."""

    matrix: Tensor
    """S, [R, H, d, dv], in the accumulation dtype."""
    tails: dict[str, Tensor]
    """Of the convolutions."""


class DeltaMixer(MemoryMixer):
    """A matrix for each head, written by the delta rule.

    Args:
        hidden_size: D.
        options: sizes left ``None`` follow the model.
        attention: the attention beside it.
    """

    # Small numbers whose rounding matters.
    keep_fp32 = ("rate", "decay", "log_speed")

    def __init__(
        self, hidden_size: int, options: DeltaOptions, attention: AttentionWeights
    ) -> None:
        super().__init__()
        options = options.sized(hidden_size, attention.kv_heads)
        self.options = options
        self.shell = HeadShell(hidden_size, options, attention)
        self.reads_features = options.projections == "shared"
        heads = self.shell.heads
        self.rate = Rate(hidden_size, heads)
        if options.decay != "none":
            outputs = heads * (self.shell.key_dim if options.decay == "channel" else 1)
            self.decay = Rate(hidden_size, outputs)
            self.log_speed = nn.Parameter(torch.zeros(heads))
            self.reset_decay()

    @torch.no_grad()
    def reset_decay(self) -> None:
        """Decays at the start: the same for all tokens, spread over heads and channels on a
        logarithmic scale."""
        outputs = len(self.decay.bias)
        start = torch.logspace(0, 1, outputs, base=FASTEST / SLOWEST) * SLOWEST
        self.decay.bias.copy_(start.expm1().log())

    def init_state(self, rows: int, dtype: torch.dtype, device: torch.device) -> DeltaState:
        shell = self.shell
        shape = (rows, shell.heads, shell.key_dim, shell.value_dim)
        matrix = torch.zeros(shape, dtype=accumulation_dtype(dtype), device=device)
        return DeltaState(matrix, shell.begin(rows, dtype))

    def forward(
        self,
        x: Tensor,
        state: State,
        layout: Layout,
        features: Features | None = None,
        written: Written | None = None,
    ) -> tuple[Tensor, DeltaState]:
        assert isinstance(state, DeltaState)
        heads = self.shell.inputs(x, state.tails, layout, features, written)
        with torch.autocast(x.device.type, enabled=False):
            rate = heads.kept(self.rate(heads.source).sigmoid().mT)
            decay = (
                None if self.options.decay == "none" else heads.kept(self._log_decay(heads.source))
            )
            read, matrix = delta_rule(
                heads.q * self.shell.key_dim**-0.5,
                heads.k,
                heads.v,
                rate,
                decay,
                state.matrix,
                self.options.block,
            )
        y = self.shell.output(read, x, layout, features)
        return y, DeltaState(matrix, heads.tails)

    def _log_decay(self, source: Tensor) -> Tensor:
        """log a_t, [R, H, N] or [R, H, N, d]."""
        speed = F.softplus(self.decay(source)).unflatten(-1, (self.shell.heads, -1))
        log_decay = -self.log_speed.to(speed.dtype).exp()[:, None] * speed  # [R, N, H, 1 or d]
        log_decay = log_decay.transpose(1, 2)
        return log_decay if self.options.decay == "channel" else log_decay[..., 0]

    def carry(self, old: State, new: State) -> DeltaState:
        """The matrix; the convolutions begin anew."""
        assert isinstance(old, DeltaState)
        assert isinstance(new, DeltaState)
        return DeltaState(old.matrix, new.tails)

    def state_bytes(self, tokens: int, dtype: torch.dtype) -> int:
        shell = self.shell
        matrix = shell.heads * shell.key_dim * shell.value_dim
        return matrix * accumulation_dtype(dtype).itemsize + shell.tail_bytes(dtype)

    def flops(self, tokens: int) -> int:
        return sum(self.flops_by_part(tokens).values())

    def flops_by_part(self, tokens: int) -> dict[str, int]:
        shell, options = self.shell, self.options
        rates = self.rate.weight.numel()
        block = options.block
        if options.decay != "none":
            rates += self.decay.weight.numel()
        if options.decay == "channel":
            block = min(block, CHANNEL_BLOCK)
        rule = block_flops(tokens, block, shell.key_dim, shell.value_dim, delta=True)
        return {
            "memory projections": tokens * shell.projections.flops(),
            "memory rates": tokens * 2 * rates,
            "memory rule": shell.heads * rule,
        }


register_memory(MemoryKind("deltanet", DeltaOptions, DeltaMixer, {"decay": "none"}))
register_memory(MemoryKind("gated_deltanet", DeltaOptions, DeltaMixer))
register_memory(MemoryKind("kda", DeltaOptions, DeltaMixer, {"decay": "channel"}))
for name in ("deltanet", "gated_deltanet"):
    preset = {"write_scope": "evicted", "decay": "none" if name == "deltanet" else "head"}
    register_memory(MemoryKind(f"ahn_{name}", DeltaOptions, DeltaMixer, preset))
