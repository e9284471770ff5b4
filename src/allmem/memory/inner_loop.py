"""The inner loop: read, normalise, gradient, clip, momentum, write; chunk by chunk, in closed form.

The order is the paper's internal normalisation (section 3.2): it sits between the read and the
update, so a read always sees exactly what the last write left. The naive twin is ``naive.py``.

Sums, norms and the state are fp32 at least. Of bfloat16 inputs the products of many tokens with the
fast weights are bfloat16 products, which add up in fp32 and are about twice as fast on a CPU and
ten times on a GPU; the fast weights are rounded for them and kept as they are. ``use_products``
says otherwise. A few tokens are multiplied in fp32: rounding the weights would cost more than that.

Letters: R rows, N slots of a call, H memory heads, d head size, M fast matrices, C chunk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from allmem.config import MemoryConfig
from allmem.errors import AllMemError, unknown_name
from allmem.layout import Layout
from allmem.memory.chunk_step import read_and_sum
from allmem.memory.muon import orthogonalise
from allmem.memory.network import UNSCALED, MemoryNetwork, Scales
from allmem.memory.rounds import assemble, choose, walk
from allmem.memory.state import FastWeights, MemoryState, accumulation_dtype
from allmem.state import may_write

__all__ = [
    "PRODUCTS",
    "inner_loop",
    "network_of",
    "products_dtype",
    "row_norms",
    "use_products",
]

SMALLEST_NORM = 1e-12
MANY, WORK = 16, 1 << 20
"""Tokens, and on a CPU multiply-adds of a product, from which on rounded fast weights are worth
their rounding."""
PRODUCTS = ("narrow", "wide")

_products = "narrow"


@contextmanager
def use_products(name: str) -> Iterator[None]:
    """Whether bfloat16 inputs are multiplied as such (``narrow``) or in fp32 (``wide``) inside the
    block: for tests, and to see what rounding does.

    The choice holds for the whole process, since a backward pass may recompute in another thread.

    Raises:
        AllMemError: if it is neither.
    """
    global _products  # noqa: PLW0603 - a switch of the process, restored on exit
    if name not in PRODUCTS:
        raise AllMemError(unknown_name("products", name, PRODUCTS))
    before, _products = _products, name
    try:
        yield
    finally:
        _products = before


def network_of(config: MemoryConfig) -> MemoryNetwork:
    """The memory network that a configuration names."""
    return MemoryNetwork(
        swiglu=config.network == "swiglu",
        residual=config.residual,
        dot_loss=config.loss == "dot",
    )


def row_norms(weights: FastWeights, config: MemoryConfig) -> FastWeights:
    """Norm of every output row over its inputs, [..., out, 1], of the matrices that are
    normalised."""
    if config.norm == "none":
        return {}
    return {
        name: torch.linalg.vector_norm(w, dim=-1, keepdim=True)
        for name, w in weights.items()
        if name in config.norm_matrices
    }


def inner_loop(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    beta: Tensor,
    state: MemoryState,
    initial: FastWeights,
    layout: Layout,
    config: MemoryConfig,
) -> tuple[Tensor, MemoryState]:
    """Read every token from memory and write it there.

    Args:
        q, k, v: [R, N, H, d], any dtype.
        eta: [R, N, H, M] rates, scaled for the chunk already.
        beta: [R, N, H] momentum decays.
        state: consumed; its open chunk holds ``layout.start % C`` tokens.
        initial: F_0, {matrix: [H, out, in]}, for the norms that rows are scaled to.
        layout: which slots hold tokens. ``layout.chunk``, if set, takes the place of
        ``config.chunk``.

    Returns:
        What was read, [R, N, H, d] in the dtype of ``q`` (0 in padding slots), and the state after
        the call.
    """
    dtype = accumulation_dtype(q.dtype)
    chunk = layout.chunk or config.chunk
    network = network_of(config)
    targets = row_norms({name: w.to(dtype) for name, w in initial.items()}, config)
    # Heads before tokens, so that every product below is one batched matrix product.
    queries, keys, values, rates, decays = (
        t.transpose(1, 2) for t in (q, k, v, eta, beta[..., None].to(dtype))
    )

    pieces = []
    rounds = layout.rounds(chunk)
    for step, tokens in walk(rounds, queries, keys, values, rates, decays):
        q_now, k_now, v_now, eta_now, beta_now = tokens
        scales = _scales(state.weights, targets, config)
        n, shape = q_now.shape[2], state.weights["down"].shape[-2:]
        products = products_dtype(q.dtype, n, shape, on_cpu=q.device.type == "cpu")
        begins, beta_now = step.all_open, beta_now.sum((2, 3))
        in_place = not begins and may_write(state.beta)
        read, gradient = read_and_sum(
            network,
            q_now,
            k_now,
            v_now,
            eta_now,
            state.weights,
            scales,
            products,
            sums=state.gradient if in_place else None,
        )
        pieces.append(read)
        if in_place:
            state.beta.add_(beta_now)
        else:
            if not begins:  # The sums are zero in those rows where a chunk begins.
                gradient = {name: state.gradient[name] + g for name, g in gradient.items()}
                beta_now = state.beta + beta_now
            state = MemoryState(state.weights, state.momentum, gradient, beta_now)
        if step.some_close:
            written = _write(state, scales, targets, chunk, config)
            state = written if step.all_close else choose(step.closes, written, state)

    if not rounds:
        return torch.zeros_like(q), state
    return assemble(pieces, rounds, layout).transpose(1, 2), state


def products_dtype(
    dtype: torch.dtype, tokens: int, shape: Sequence[int], *, on_cpu: bool
) -> torch.dtype:
    """In which tokens are multiplied with the fast weights.

    Args:
        dtype: of q, k and v.
        tokens: of one round.
        shape: of a fast matrix.
    """
    worth = tokens >= MANY and (not on_cpu or tokens * math.prod(shape) >= WORK)
    if dtype == torch.bfloat16 and worth and _products == "narrow":
        return dtype
    return accumulation_dtype(dtype)


def _scales(weights: FastWeights, targets: FastWeights, config: MemoryConfig) -> Scales:
    """The row scales of step 2: F' = F ||F_0|| / ||F||. Only internal normalisation needs them
    here: after a post-update normalisation the stored weights *are* the normalised ones."""
    if config.norm != "internal":
        return UNSCALED
    return _row_scales(weights, targets, config)


def _row_scales(weights: FastWeights, targets: FastWeights, config: MemoryConfig) -> Scales:
    norms = row_norms(weights, config)
    return {name: targets[name] / norm.clamp_min(SMALLEST_NORM) for name, norm in norms.items()}


def _apply(weights: FastWeights, scales: Scales) -> FastWeights:
    return {name: w * scales[name] if name in scales else w for name, w in weights.items()}


def _write(
    state: MemoryState, scales: Scales, targets: FastWeights, chunk: int, config: MemoryConfig
) -> MemoryState:
    """Steps 4 to 6: clip, momentum, write; leaves an empty chunk."""
    update = {name: _clip(g, config.clip) for name, g in state.gradient.items()}
    momentum: FastWeights = {}
    if config.momentum:
        decay = (state.beta / chunk)[..., None, None]
        update = {name: decay * state.momentum[name] + g for name, g in update.items()}
        momentum = update
    if config.optimizer == "muon":
        # The momentum keeps what was added up, not what was written.
        update = {name: orthogonalise(u) for name, u in update.items()}
    normalised = _apply(state.weights, scales)
    weights = {name: w - update[name] for name, w in normalised.items()}
    if config.norm == "post_update":
        weights = _apply(weights, _row_scales(weights, targets, config))
    empty = {name: torch.zeros_like(g) for name, g in state.gradient.items()}
    return MemoryState(weights, momentum, empty, torch.zeros_like(state.beta))


def _clip(gradient: Tensor, limit: float | None) -> Tensor:
    """G min(1, tau / ||G||), Frobenius norm per head and matrix."""
    if limit is None:
        return gradient
    norm = torch.linalg.matrix_norm(gradient, keepdim=True)
    # tau / max(norm, tau) rather than min(1, tau / norm): finite, also in its derivative, at norm
    # 0.
    return gradient * (limit / norm.clamp_min(limit))
