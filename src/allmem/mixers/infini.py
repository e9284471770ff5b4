"""``infini``: the memory of Infini-attention (Munkhdalai et al. 2024, arXiv:2404.07143).

    read:    o_t = M_s^T s(q_t) / (z_s . s(q_t))                      with s(a) = ELU(a) + 1
    linear:  M_{s+1} = M_s + sum_t s(k_t) v_t^T                      z_{s+1} = z_s + sum_t s(k_t)
    delta:   M_{s+1} = M_s + sum_t s(k_t) (v_t - M_s^T s(k_t) / (z_s . s(k_t)))^T

over the tokens t of one segment, our chunk: all of them read and correct what the segments before
left behind. What an open chunk will write is a sum at a fixed M, so the state holds the sum and no
keys. Before the first chunk is full the memory says nothing, 0.

Unlike the paper's: queries and keys of root mean square one (the paper normalises nothing; its s is
flat for features much smaller than that), keys without positions, which the paper leaves open, and
the output norm that all memories share. Its gate, sigmoid(b) for each head, weighs memory against
local attention; here it scales the memory alone, since attention stays what it was.

Letters: R rows, N slots of a call, D hidden size, H heads, d size of keys, dv of values, C chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from allmem.config import HeadOptions, KeyNorm, require_choice, require_positive
from allmem.layout import Layout
from allmem.memory.projections import AttentionWeights, Features
from allmem.memory.rounds import assemble, choose, walk
from allmem.memory.state import accumulation_dtype
from allmem.mixers.heads import HeadMixer, Heads, HeadState
from allmem.mixers.registry import MemoryKind, register_memory
from allmem.state import State

__all__ = ["InfiniMemory", "InfiniMixer", "InfiniOptions", "InfiniState", "infini_rule"]

Update = Literal["linear", "delta"]


@dataclass(frozen=True)
class InfiniOptions(HeadOptions):
    """Options of the compressive memory.

    Raises:
        AllMemError: on a value outside its range.
    """

    activation: bool = False
    """Whether q, k and v go through SiLU; off, since s already makes queries and keys positive."""
    qk_norm: KeyNorm = "rms"
    """What q and k are divided by before s; of length one (``l2``) all keys would look alike."""
    chunk: int = 2048
    """Tokens of a segment: C."""
    update: Update = "delta"
    """Whether a token writes its value (``linear``) or what the memory did not already say of it
    (``delta``)."""
    head_gate: bool = True
    """Whether each head's read is scaled by a learned sigmoid(b), which starts at 1/2."""

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        require_positive(name, chunk=self.chunk)
        require_choice(name, "update", self.update, get_args(Update))


@dataclass
class InfiniMemory(State):
    """The matrix and the open chunk, in the accumulation dtype."""

    matrix: Tensor
    """[R, H, d, dv + 1]: M and, as its last column, z."""
    written: Tensor
    """The same shape: what the open chunk will add."""


@dataclass
class InfiniState(HeadState):
    """What one sequence leaves behind."""

    memory: InfiniMemory


def infini_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    memory: InfiniMemory,
    layout: Layout,
    chunk: int,
    update: Update,
) -> tuple[Tensor, InfiniMemory]:
    """Read every token from the chunks before its own, and write it.

    Args:
        q: s(q), [R, H, N, d].
        k: s(k), [R, H, N, d]; 0 where nothing is written.
        v: [R, H, N, dv].
        memory: its open chunk holds ``layout.start % C`` tokens.
        chunk: C.

    Returns:
        [R, H, N, dv] (0 in padding slots) and the memory after the call.
    """
    # A value of one more feature, always 1, adds up to z.
    v = F.pad(v, (0, 1), value=1.0)
    pieces = []
    rounds = layout.rounds(chunk)
    for step, (q_now, k_now, v_now) in walk(rounds, q, k, v):
        pieces.append(_mean(q_now @ memory.matrix))
        if update == "delta":
            known = _mean(k_now @ memory.matrix)
            v_now = v_now - F.pad(known, (0, 1))
        written = memory.written + k_now.mT @ v_now
        memory = InfiniMemory(memory.matrix, written)
        if step.some_close:
            closed = InfiniMemory(memory.matrix + written, torch.zeros_like(written))
            memory = closed if step.all_close else choose(step.closes, closed, memory)
    if not rounds:
        return torch.zeros_like(v[..., :-1]), memory
    return assemble(pieces, rounds, layout), memory


def _mean(found: Tensor) -> Tensor:
    """A weighted mean of values: sums [..., dv + 1] over their last feature; 0 if that is 0."""
    total = found[..., -1:]
    # Not a clamp: a tiny denominator would make huge gradients where nothing is written yet.
    return found[..., :-1] / torch.where(total > 0, total, 1)


class InfiniMixer(HeadMixer[InfiniState]):
    """A matrix and a normaliser for each head, written once a chunk."""

    # One number a head.
    keep_fp32 = ("head_gate",)
    options: InfiniOptions

    def __init__(
        self, hidden_size: int, options: InfiniOptions, attention: AttentionWeights
    ) -> None:
        super().__init__(hidden_size, options, attention)
        if options.head_gate:
            self.head_gate = nn.Parameter(torch.zeros(self.shell.heads))

    def begin(self, rows: int, dtype: torch.dtype, device: torch.device) -> InfiniState:
        shape = (rows, self.shell.heads, self.shell.key_dim, self.shell.value_dim + 1)
        matrix = torch.zeros(shape, dtype=accumulation_dtype(dtype), device=device)
        return InfiniState(InfiniMemory(matrix, matrix.clone()))

    def lag(self, layout: Layout) -> int:
        return layout.chunk or self.options.chunk

    def periods(self, layout: Layout) -> frozenset[int]:
        return frozenset((self.lag(layout),))

    def mix(self, heads: Heads, state: InfiniState, layout: Layout) -> tuple[Tensor, InfiniState]:
        read, memory = infini_rule(
            F.elu(heads.q) + 1,
            # s(0) = 1: a key of zeros would be written.
            heads.kept(F.elu(heads.k) + 1),
            heads.v,
            state.memory,
            layout,
            layout.chunk or self.options.chunk,
            self.options.update,
        )
        return read, InfiniState(memory)

    def output(self, read: Tensor, x: Tensor, features: Features | None) -> Tensor:
        scale = self.head_gate.to(read.dtype).sigmoid() if self.options.head_gate else None
        return self.shell.output(read, x, features, scale)

    def carried(self, old: InfiniState, new: InfiniState) -> InfiniState:
        """The matrix; the open chunk begins anew."""
        return InfiniState(InfiniMemory(old.memory.matrix, new.memory.written))

    def state_bytes(self, tokens: int, dtype: torch.dtype) -> int:
        matrix = self.shell.heads * self.shell.key_dim * (self.shell.value_dim + 1)
        return 2 * matrix * accumulation_dtype(dtype).itemsize + super().state_bytes(tokens, dtype)

    def flops_by_part(self, tokens: int) -> dict[str, int]:
        """One product with the matrix to read, one to write, and for the delta rule one more to
        read what is known of a key."""
        shell = self.shell
        product = tokens * shell.heads * 2 * shell.key_dim * (shell.value_dim + 1)
        return {
            **super().flops_by_part(tokens),
            "memory read": product,
            "memory write": product * (2 if self.options.update == "delta" else 1),
        }


register_memory(MemoryKind("infini", InfiniOptions, InfiniMixer))
