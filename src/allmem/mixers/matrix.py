"""What the memories that keep one matrix for each head have in common: everything but the rule.

A subclass says which rates it has, what one call does with the matrix (``rule``), and what that
costs.

Letters: R rows, N slots of a call, D hidden size, H heads, d size of keys, dv of values.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from allmem.config import HeadOptions, require_choice, require_positive
from allmem.layout import Layout
from allmem.memory.projections import AttentionWeights, Narrowing
from allmem.memory.state import accumulation_dtype
from allmem.mixers.heads import HeadMixer, Heads, HeadState

__all__ = [
    "AHN",
    "LowRankRate",
    "MatrixMixer",
    "MatrixOptions",
    "MatrixState",
    "spread_speeds",
]

FASTEST, SLOWEST = 10, 1000
"""Tokens in which heads forget to 1/e, as the time steps of Mamba-2 are spread."""
WINDOWS = 30
"""Windows in which the slowest does, where the fastest takes one."""

DecayStart = Literal["window", "tokens"]

AHN: dict[str, Any] = {
    "write_scope": "evicted",
    "projections": "shared",
    "conv": 0,
    "activation": False,
    "qk_norm": "l2",
    "gate": "silu",
}
"""What Artificial Hippocampus Networks (Fang et al. 2025, arXiv:2510.07318) choose around a rule.

As there, the token that leaves the window is written before the query reads, sinks never are, the
rates are those of the token that is written and the gate is that of the query, and nothing stands
between the projections and the rule but the norm. q, k and v are the attention's own and frozen, k
and v taken from the window as it loses them; unlike there they are not rotated, and a difference of
low rank is trained. Their gate is one number for each head and their output projection one small
matrix for each; here both are the shell's.
"""


def spread_speeds(count: int, window: int | None = None) -> Tensor:
    """-log of the decays at the start, [count]: from slow to fast on a logarithmic scale.

    Args:
        window: W, if decays are spread over windows and not over fixed numbers of tokens.
    """
    fastest, slowest = (FASTEST, SLOWEST) if window is None else (window, WINDOWS * window)
    return torch.logspace(0, 1, count, base=slowest / fastest) / slowest


class LowRankRate(Narrowing):
    """A map of x of rank r to one number per output, computed in fp32 at least; it starts as its
    bias alone."""

    def __init__(self, hidden_size: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.size = rank
        self.down = nn.Parameter(torch.empty(rank, hidden_size))
        self.up = nn.Parameter(torch.zeros(outputs, rank))
        self.bias = nn.Parameter(torch.zeros(outputs))
        with torch.no_grad():
            self.down.normal_(std=hidden_size**-0.5)

    def narrow(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        return F.linear(x.to(dtype), self.down.to(dtype))

    def widen(self, z: Tensor) -> Tensor:
        return F.linear(z, self.up.to(z.dtype), self.bias.to(z.dtype))


@dataclass(frozen=True)
class MatrixOptions(HeadOptions):
    """Options of the memories that keep a matrix for each head.

    Raises:
        AllMemError: on a value outside its range.
    """

    block: int = 64
    """Tokens that are computed together; at most 16 where channels decay. It changes the speed, not
    the result."""
    decay_start: DecayStart = "window"
    """Over what the decays of a memory that forgets are spread at the start: 1 to 30 windows, since
    what is forgotten within the window is of no use beside it, or the tokens of the original."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(type(self).__name__, block=self.block)
        require_choice(type(self).__name__, "decay_start", self.decay_start, get_args(DecayStart))


@dataclass
class MatrixState(HeadState):
    """What one sequence leaves behind."""

    matrix: Tensor
    """S, [R, H, d, dv], in the accumulation dtype."""


class MatrixMixer(HeadMixer[MatrixState]):
    """A matrix for each head, behind the projections that all memories share."""

    options: MatrixOptions

    def __init__(
        self, hidden_size: int, options: MatrixOptions, attention: AttentionWeights
    ) -> None:
        super().__init__(hidden_size, options, attention)
        self.decay_window = attention.window if options.decay_start == "window" else None

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """Rows and columns of a head's matrix."""
        return self.shell.key_dim, self.shell.value_dim

    @abstractmethod
    def rule(self, heads: Heads, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Write and read the tokens of one call; runs outside of autocast.

        Args:
            matrix: [R, H, ...], as ``matrix_shape``.

        Returns:
            What was read, [R, H, N, dv], and the matrix after the call.
        """

    @abstractmethod
    def rule_flops(self, tokens: int) -> int:
        """Of one head, for the first ``tokens`` tokens of a sequence."""

    def begin(self, rows: int, dtype: torch.dtype, device: torch.device) -> MatrixState:
        shape = (rows, self.shell.heads, *self.matrix_shape)
        return MatrixState(torch.zeros(shape, dtype=accumulation_dtype(dtype), device=device))

    def periods(self, layout: Layout) -> frozenset[int]:
        return frozenset()

    def mix(self, heads: Heads, state: MatrixState, layout: Layout) -> tuple[Tensor, MatrixState]:
        read, matrix = self.rule(heads, state.matrix)
        return read, MatrixState(matrix)

    def state_bytes(self, tokens: int, dtype: torch.dtype) -> int:
        rows, columns = self.matrix_shape
        matrix = self.shell.heads * rows * columns
        return matrix * accumulation_dtype(dtype).itemsize + super().state_bytes(tokens, dtype)

    def flops_by_part(self, tokens: int) -> dict[str, int]:
        return {
            **super().flops_by_part(tokens),
            "memory rule": self.shell.heads * self.rule_flops(tokens),
        }
