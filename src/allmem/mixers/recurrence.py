"""Matrix-valued recurrences, block by block: the rules behind most linear memories.

    linear:  S_t = diag(a_t) S_{t-1} + k_t v_t^T                               o_t = S_t^T q_t
    delta:   S_t = diag(a_t) S_{t-1} + b_t k_t (v_t - (diag(a_t) S_{t-1})^T k_t)^T

with a_t one decay for a head or one for each channel of its keys. A block of n tokens is computed
at once from the state before it: token t sees what j <= t wrote with the weight a_{j+1} ... a_t.
The logarithms of such a run are added up before the exponential is taken, so that nothing overflows
however strongly a head forgets; and every run by itself, not as the difference of two sums from the
block's first token, in which one strong decay would drown the weak ones that follow.

A token with k = 0, v = 0, b = 0 and log a = 0 changes nothing: so padding is written.

Letters: R rows, H heads, N tokens, n tokens of a block, d size of keys, dv of values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from allmem.mixers.kernels import delta_kernel, linear_kernel

__all__ = ["Decay", "block_flops", "delta_rule", "linear_rule"]

CHANNEL_BLOCK = 16
"""Tokens of a block where every channel has a decay of its own: their weights are [n, n, d]."""


def linear_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    state: Tensor,
    block: int,
    narrow: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Linear attention with decay, as in GLA (a decay per channel) and Mamba-2 (one per head).

    Args:
        q, k: [R, H, N, d].
        v: [R, H, N, dv].
        log_decay: [R, H, N] or [R, H, N, d], at most 0 and down to -inf; ``None`` for no decay.
        state: S, [R, H, d, dv].
        block: n; it changes the speed, not the result.
        narrow: the dtype of what q, k and v were computed from, in which kernels may compute if
            ``allmem.mixers.kernels`` picks them; ``None`` if they may not.

    Returns:
        [R, H, N, dv] and the state after the tokens.
    """
    found = linear_kernel(q, k, v, log_decay, state, narrow)
    if found is not None:
        return found
    pieces = []
    for now in _blocks(q.shape[2], block, log_decay):
        decay = Decay(None if log_decay is None else log_decay[:, :, now])
        q_now, k_now, v_now = q[:, :, now], k[:, :, now], v[:, :, now]
        y = decay.products(q_now, k_now) @ v_now
        pieces.append(y + decay.since_start(q_now) @ state)
        state = decay.carried(state) + decay.until_end(k_now).mT @ v_now
    return torch.cat(pieces, 2) if pieces else v, state


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rate: Tensor,
    log_decay: Tensor | None,
    state: Tensor,
    block: int,
    narrow: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """The delta rule: a token writes what the state did not already say of its key (Yang et al.
    2024, arXiv:2406.06484; with decay arXiv:2412.06464; per channel arXiv:2510.26692).

    Args:
        q, k: [R, H, N, d]; the rule is stable while b |k|^2 < 2.
        v: [R, H, N, dv].
        rate: b, [R, H, N].
        log_decay: [R, H, N] or [R, H, N, d], at most 0 and down to -inf; ``None`` for no decay.
        state: S, [R, H, d, dv].
        block: n; it changes the speed, not the result.
        narrow: the dtype of what q, k and v were computed from, in which kernels may compute if
            ``allmem.mixers.kernels`` picks them; ``None`` if they may not.

    Returns:
        [R, H, N, dv] and the state after the tokens.
    """
    found = delta_kernel(q, k, v, rate, log_decay, state, narrow)
    if found is not None:
        return found
    pieces = []
    for now in _blocks(q.shape[2], block, log_decay):
        decay = Decay(None if log_decay is None else log_decay[:, :, now])
        q_now, k_now, v_now, b = q[:, :, now], k[:, :, now], v[:, :, now], rate[:, :, now, None]
        # What each token writes depends on what those before it wrote: (1 + b K) u = b (v - k S),
        # with K the products of keys below the diagonal, which is all that the solver looks at.
        among = b * decay.products(k_now, k_now)
        asked = b * (v_now - decay.since_start(k_now) @ state)
        u = torch.linalg.solve_triangular(among, asked, upper=False, unitriangular=True)
        y = decay.products(q_now, k_now) @ u
        pieces.append(y + decay.since_start(q_now) @ state)
        state = decay.carried(state) + decay.until_end(k_now).mT @ u
    return torch.cat(pieces, 2) if pieces else v, state


def block_flops(tokens: int, block: int, key_dim: int, value_dim: int, *, delta: bool) -> int:
    """Matrix products of one head over ``tokens`` tokens from the start of a call, a multiply-add
    counting two; the triangular solve counts none."""
    blocks, rest = divmod(tokens, block)
    pairs = blocks * block**2 + rest**2
    within = 2 * pairs * (key_dim + value_dim)
    across = 2 * 2 * tokens * key_dim * value_dim
    if delta:
        within += 2 * pairs * key_dim
        across += 2 * tokens * key_dim * value_dim
    return within + across


def _blocks(tokens: int, block: int, log_decay: Tensor | None) -> list[slice]:
    if log_decay is not None and log_decay.dim() == 4:
        block = min(block, CHANNEL_BLOCK)
    return [slice(first, first + block) for first in range(0, tokens, block)]


class Decay:
    """The decays of one block, from their logarithms, [R, H, n] or [R, H, n, d]; or none at all."""

    def __init__(self, log_decay: Tensor | None) -> None:
        self.channels = log_decay is not None and log_decay.dim() == 4
        self.between: Tensor | None = None  # [R, H, n, n(, d)], what t sees of j; 0 for j > t
        self.since: Tensor | None = None  # [R, H, n(, d)], what t sees of the state before
        if log_decay is None:
            return
        n = log_decay.shape[2]
        past = torch.ones(n, n, dtype=torch.bool, device=log_decay.device).tril()
        run = past.tril(-1)
        if self.channels:
            past, run = past[..., None], run[..., None]
        runs = torch.where(run, log_decay[:, :, :, None], 0).cumsum(2)
        self.between = runs.masked_fill(~past, -torch.inf).exp()
        self.since = log_decay.cumsum(2).exp()

    def products(self, a: Tensor, b: Tensor) -> Tensor:
        """a_t . diag(between) b_j for j <= t, else 0: [R, H, n, n]."""
        if self.between is None:
            return (a @ b.mT).tril()
        if self.channels:
            # One matrix-vector product for each t.
            return torch.einsum("rhtjd,rhtd->rhtj", self.between * b[:, :, None], a)
        return (a @ b.mT) * self.between

    def since_start(self, a: Tensor) -> Tensor:
        """a_t, to meet the state before the block: [R, H, n, d]."""
        return a if self.since is None else a * self._wide(self.since)

    def until_end(self, a: Tensor) -> Tensor:
        """a_j, what is left of it after the block: [R, H, n, d]."""
        return a if self.between is None else a * self._wide(self.between[:, :, -1])

    def carried(self, state: Tensor) -> Tensor:
        """What is left of the state after the block: [R, H, d, dv]."""
        if self.since is None:
            return state
        return self._wide(self.since[:, :, -1])[..., None] * state

    def _wide(self, decay: Tensor) -> Tensor:
        return decay if self.channels else decay[..., None]
