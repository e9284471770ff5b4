"""The inner loop by its definition: one row at a time, one chunk at a time, the inner gradient by
autograd. Slow and plain; the oracle that every faster form is tested against.

The whole sequence is given in one call, so there is no state to carry: continuing a sequence is
tested by comparing the split with this.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from allmem.config import MemoryConfig
from allmem.memory.muon import NEWTON_SCHULZ, SMALLEST_NORM
from allmem.memory.state import FastWeights

__all__ = ["naive_inner_loop", "naive_read"]


def naive_read(z: Tensor, weights: FastWeights, config: MemoryConfig) -> Tensor:
    """M(z; F) for z [H, n, d] and weights [H, out, in]."""
    hidden = z
    if config.network == "swiglu":
        gate = torch.einsum("hoi,hni->hno", weights["gate"], z)
        up = torch.einsum("hoi,hni->hno", weights["up"], z)
        hidden = F.silu(gate) * up
    y = torch.einsum("hoi,hni->hno", weights["down"], hidden)
    return z + y if config.residual else y


def naive_inner_loop(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    beta: Tensor,
    initial: FastWeights,
    config: MemoryConfig,
    lengths: Tensor | None = None,
) -> tuple[Tensor, list[FastWeights], list[FastWeights]]:
    """The six steps of the inner loop (paper section 3.2) over whole sequences.

    Args:
        q, k, v: [R, N, H, d], any dtype; computed in that dtype.
        eta: [R, N, H, M]; beta: [R, N, H].
        initial: F_0, {matrix: [H, out, in]}.
        lengths: [R] tokens of each row; ``None`` if all slots hold tokens.

    Returns:
        What was read, [R, N, H, d]; then, per row, the final fast weights and momentum.
    """
    rows = q.shape[0]
    lengths = torch.full((rows,), q.shape[1]) if lengths is None else lengths
    results = []
    for r, length in enumerate(lengths.tolist()):
        q_r, k_r, v_r, eta_r, beta_r = (x[r, :length].transpose(0, 1) for x in (q, k, v, eta, beta))
        results.append(_one_row(q_r, k_r, v_r, eta_r, beta_r, initial, config))
    padded = [
        F.pad(read, (0, 0, 0, q.shape[1] - read.shape[1])).transpose(0, 1) for read, _, _ in results
    ]
    return torch.stack(padded), [w for _, w, _ in results], [u for _, _, u in results]


def _one_row(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    beta: Tensor,
    initial: FastWeights,
    config: MemoryConfig,
) -> tuple[Tensor, FastWeights, FastWeights]:
    """q, k, v [H, n, d], eta [H, n, M], beta [H, n]."""
    weights = dict(initial)
    momentum = {name: torch.zeros_like(w) for name, w in initial.items()}
    reads = []
    for first in range(0, q.shape[1], config.chunk):
        now = slice(first, first + config.chunk)
        reads.append(naive_read(q[:, now], weights, config))
        if q[:, now].shape[1] < config.chunk:
            break
        if config.norm == "internal":
            weights = _normalised(weights, initial, config)
        gradient = _inner_gradient(k[:, now], v[:, now], eta[:, now], weights, config)
        if config.clip is not None:
            gradient = {name: _clipped(g, config.clip) for name, g in gradient.items()}
        decay = beta[:, now].mean(1)[:, None, None] if config.momentum else 0
        momentum = {name: decay * momentum[name] + g for name, g in gradient.items()}
        update = momentum
        if config.optimizer == "muon":
            update = {name: _orthogonal(u) for name, u in momentum.items()}
        weights = {name: w - update[name] for name, w in weights.items()}
        if config.norm == "post_update":
            weights = _normalised(weights, initial, config)
    return torch.cat(reads, dim=1) if reads else q, weights, momentum


def _normalised(weights: FastWeights, initial: FastWeights, config: MemoryConfig) -> FastWeights:
    result = dict(weights)
    for name in weights:
        if name in config.norm_matrices:
            target = initial[name].pow(2).sum(-1, keepdim=True).sqrt()
            norm = weights[name].pow(2).sum(-1, keepdim=True).sqrt()
            result[name] = weights[name] * target / norm
    return result


def _clipped(gradient: Tensor, limit: float) -> Tensor:
    norm = gradient.pow(2).sum((-2, -1), keepdim=True).sqrt()
    return torch.where(norm > limit, gradient * limit / norm, gradient)


def _orthogonal(update: Tensor) -> Tensor:
    """p_5(... p_1(G / |G|)) for G [H, out, in], with p(X) = a X + b X X^T X + c X X^T X X^T X."""
    heads = []
    for matrix in update:
        x = matrix / (matrix.pow(2).sum().sqrt() + SMALLEST_NORM)
        for a, b, c in NEWTON_SCHULZ:
            cube = x @ x.T @ x
            x = a * x + b * cube + c * (x @ x.T @ cube)
        heads.append(x)
    return torch.stack(heads)


def _inner_gradient(
    k: Tensor, v: Tensor, eta: Tensor, weights: FastWeights, config: MemoryConfig
) -> FastWeights:
    """sum_t eta_t dl_t/dF, each matrix with its own rates, differentiable once more."""
    with torch.enable_grad():
        at = {n: w if w.requires_grad else w.detach().requires_grad_() for n, w in weights.items()}
        y = naive_read(k, at, config)
        loss = -(y * v).sum(-1) if config.loss == "dot" else 0.5 * (y - v).pow(2).sum(-1)
        return {
            name: torch.autograd.grad((eta[..., m] * loss).sum(), at[name], create_graph=True)[0]
            for m, name in enumerate(config.matrices)
        }
