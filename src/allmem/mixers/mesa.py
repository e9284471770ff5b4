"""``mesa``: the optimal linear memory (MesaNet, von Oswald et al. 2025, arXiv:2506.05233).

    H_t = a_t H_{t-1} + b_t k_t k_t^T,   G_t = a_t G_{t-1} + b_t k_t v_t^T
    o_t = G_t^T (H_t + diag(l))^{-1} q_t
    a_t = sigmoid(W_a x_t + c);   b_t = sigmoid(W_b x_t)

Of all matrices it reads with the one that fits every pair written so far best, forgotten ones less
and with a ridge l for each channel: what other rules for a matrix of this size approach step by
step. The inverse is never made: conjugate gradients solve for every query, ``iterations`` products
with H_t each, or ``solver = exact`` solves the system of every token (a reference: it makes a
d x d matrix of each).

Unlike the original, v has the convolution and activation that all memories share, decays start
slow, and prefill and decoding start the iterations from the same point, zero.

Letters: R rows, H heads, N tokens, n tokens of a block, d size of keys, dv of values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from allmem.config import require_choice, require_positive
from allmem.memory.projections import AttentionWeights
from allmem.memory.unit import Rate
from allmem.mixers.heads import Heads
from allmem.mixers.matrix import MatrixMixer, MatrixOptions, spread_speeds
from allmem.mixers.recurrence import Decay
from allmem.mixers.registry import MemoryKind, register_memory

__all__ = ["MesaMixer", "MesaOptions", "conjugate_gradients", "mesa_rule"]

Solver = Literal["cg", "exact"]

SMALLEST_RIDGE = 0.25
"""l is this and a softplus, as in flash-linear-attention; it starts at ``FIRST_RIDGE``."""
FIRST_RIDGE = 1.0


@dataclass(frozen=True)
class MesaOptions(MatrixOptions):
    """Options of the optimal linear memory.

    Raises:
        AllMemError: on a value outside its range.
    """

    solver: Solver = "cg"
    """How a query's system is solved: by conjugate gradients, or exactly."""
    iterations: int = 30
    """Of the conjugate gradients (as in the paper)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        require_choice(name, "solver", self.solver, get_args(Solver))
        require_positive(name, iterations=self.iterations)


def mesa_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rate: Tensor,
    log_decay: Tensor,
    ridge: Tensor,
    state: Tensor,
    block: int,
    iterations: int | None,
) -> tuple[Tensor, Tensor]:
    """Write and read tokens; one with k = 0, v = 0 and log a = 0 writes nothing.

    Args:
        q, k: [R, H, N, d].
        v: [R, H, N, dv].
        rate: b, [R, H, N].
        log_decay: log a, [R, H, N], at most 0.
        ridge: l, [H, d], positive.
        state: H and G beside one another, [R, H, d, d + dv].
        block: n; it changes the speed, not the result.
        iterations: of the conjugate gradients; ``None`` to solve exactly.

    Returns:
        [R, H, N, dv] and the state after the tokens.
    """
    d = k.shape[-1]
    ridge = ridge[:, None]  # [H, 1, d], for every token
    pieces = []
    for first in range(0, q.shape[2], block):
        now = slice(first, first + block)
        q_now, k_now, v_now = q[:, :, now], k[:, :, now], v[:, :, now]
        decay = Decay(log_decay[:, :, now])
        assert decay.between is not None
        assert decay.since is not None
        since = decay.since[..., None]
        seen = decay.between * rate[:, :, None, now]  # [R, H, n, n], b_j and what t sees of j
        moments, written = state.split([d, state.shape[-1] - d], dim=-1)
        if iterations is None:
            x = _solved(q_now, k_now, seen, since, ridge, moments)
        else:
            product = _product(k_now, seen, since, ridge, moments)
            x = conjugate_gradients(product, q_now, iterations)
        pieces.append(((x @ k_now.mT) * seen) @ v_now + (since * x) @ written)
        left = k_now * seen[:, :, -1, :, None]
        state = since[:, :, -1:] * state + left.mT @ torch.cat([k_now, v_now], dim=-1)
    return torch.cat(pieces, 2) if pieces else v, state


def _product(
    k: Tensor, seen: Tensor, since: Tensor, ridge: Tensor, moments: Tensor
) -> Callable[[Tensor], Tensor]:
    """p -> (H_t + diag(l)) p for one p of every token of a block, [R, H, n, d]."""

    def product(p: Tensor) -> Tensor:
        return ((p @ k.mT) * seen) @ k + (since * p) @ moments + ridge * p

    return product


def _solved(
    q: Tensor, k: Tensor, seen: Tensor, since: Tensor, ridge: Tensor, moments: Tensor
) -> Tensor:
    """(H_t + diag(l))^{-1} q_t, from the matrices themselves: [R, H, n, d, d]."""
    outer = (k[..., None] * k[..., None, :]).flatten(-2)
    matrices = (seen @ outer).unflatten(-1, (k.shape[-1], -1))
    matrices = matrices + since[..., None] * moments[:, :, None] + torch.diag_embed(ridge)
    return torch.linalg.solve(matrices, q[..., None])[..., 0]


def conjugate_gradients(product: Callable[[Tensor], Tensor], q: Tensor, iterations: int) -> Tensor:
    """x with A x near q for every q along the last dimension, from zero; the same number of steps
    for all, so that the result does not depend on what stands beside.

    Args:
        product: p -> A p, A symmetric and positive definite.
        q: [..., d].
    """
    x, residual, direction = torch.zeros_like(q), q, q
    square = residual.square().sum(-1, keepdim=True)
    # A solved system has no residual left to divide by: steps below rounding come to a halt.
    numbers = torch.finfo(q.dtype)
    floor = numbers.eps**2 * square.detach() + numbers.tiny
    for _ in range(iterations):
        image = product(direction)
        step = square / ((direction * image).sum(-1, keepdim=True) + floor)
        x = x + step * direction
        residual = residual - step * image
        before, square = square, residual.square().sum(-1, keepdim=True)
        direction = residual + square / (before + floor) * direction
    return x


class MesaMixer(MatrixMixer):
    """Two sums for each head, and a system solved for each query."""

    # Small numbers whose rounding matters.
    keep_fp32 = ("rate", "decay", "ridge")

    def __init__(self, hidden_size: int, options: MesaOptions, attention: AttentionWeights) -> None:
        super().__init__(hidden_size, options, attention)
        self.iterations = options.iterations if options.solver == "cg" else None
        heads = self.shell.heads
        self.rate = Rate(hidden_size, heads)
        self.decay = Rate(hidden_size, heads)
        self.ridge = nn.Parameter(torch.empty(heads, self.shell.key_dim))
        self.reset_rates()

    @torch.no_grad()
    def reset_rates(self) -> None:
        """At the start all tokens are written alike, and decays are spread over the heads."""
        # log sigmoid(c) = -s
        speeds = spread_speeds(self.shell.heads, self.decay_window)
        self.decay.bias.copy_(-speeds.expm1().log())
        first = torch.full_like(self.ridge, FIRST_RIDGE - SMALLEST_RIDGE, dtype=torch.float32)
        self.ridge.copy_(first.expm1().log())

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return self.shell.key_dim, self.shell.key_dim + self.shell.value_dim

    def rule(self, heads: Heads, matrix: Tensor) -> tuple[Tensor, Tensor]:
        rate = heads.kept(heads.mapped(self.rate).sigmoid().mT)
        decay = heads.kept(F.logsigmoid(heads.mapped(self.decay)).mT)
        ridge = F.softplus(self.ridge.to(matrix.dtype)) + SMALLEST_RIDGE
        return mesa_rule(
            heads.q,
            heads.k,
            heads.v,
            rate,
            decay,
            ridge,
            matrix,
            self.options.block,
            self.iterations,
        )

    def rule_flops(self, tokens: int) -> int:
        """Of a head: every product with H_t twice n^2 d within the block and n d^2 across; or, for
        the exact solver, n^2 d^2 for the matrices, the systems not counted."""
        d, dv, block = self.shell.key_dim, self.shell.value_dim, self.options.block
        blocks, rest = divmod(tokens, block)
        pairs = blocks * block**2 + rest**2
        read = pairs * (d + dv) + tokens * d * dv
        write = tokens * d * (d + dv)
        if self.iterations is None:
            solve = pairs * d**2
        else:
            solve = self.iterations * (2 * pairs * d + tokens * d**2)
        return 2 * (solve + read + write)


register_memory(MemoryKind("mesa", MesaOptions, MesaMixer))
