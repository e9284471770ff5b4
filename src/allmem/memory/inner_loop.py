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

import torch
from torch import Tensor

from allmem.config import MemoryConfig
from allmem.layout import Layout, Round
from allmem.memory import kernels
from allmem.memory.chunk_step import read_and_sum, read_only
from allmem.memory.muon import orthogonalise
from allmem.memory.network import FEW, UNSCALED, MemoryNetwork, Scales
from allmem.memory.rounds import assemble, choose, walk
from allmem.memory.state import FastWeights, MemoryState, accumulation_dtype
from allmem.state import may_write
from allmem.switch import Switch, one_of

__all__ = [
    "PRODUCTS",
    "finds_rows",
    "inner_loop",
    "network_of",
    "row_norms",
    "use_products",
]

SMALLEST_NORM = 1e-12
MANY, WORK = 16, 1 << 20
"""Tokens, and on a CPU multiply-adds of a product, from which on rounded fast weights are worth
their rounding."""
PRODUCTS = ("narrow", "wide")

_switch = Switch(one_of("products", PRODUCTS))
use_products = _switch.use
"""Whether bfloat16 inputs are multiplied as such (``narrow``, as outside such blocks) or in fp32
(``wide``) inside the block: for tests, and to see what rounding does.

Raises:
    AllMemError: if it is neither.
"""


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
        state: consumed; its open chunk holds ``layout.start % C`` tokens. One whose rows lie in a
            pool is for calls that ``finds_rows`` allows.
        initial: F_0, {matrix: [H, out, in]}, for the norms that rows are scaled to.
        layout: which slots hold tokens. ``layout.chunk``, if set, takes the place of
        ``config.chunk``.

    Returns:
        What was read, [R, N, H, d] in the dtype of ``q`` (0 in padding slots), and the state after
        the call; of rows that end with it (``layout.final``) a state that is good for nothing.
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
        if layout.final and step is rounds[-1]:
            products = _products_dtype(tokens[0], state.weights)
            pieces.append(read_only(network, tokens[0], state.weights, products))
            continue
        read, state = _read_and_write(network, tokens, step, state, targets, chunk, config)
        pieces.append(read)

    if not rounds:
        return torch.zeros_like(q), state
    return assemble(pieces, rounds, layout).transpose(1, 2), state


def finds_rows(q: Tensor, state: MemoryState, layout: Layout, config: MemoryConfig) -> bool:
    """Whether ``inner_loop`` computes a call of one token for every row by kernels that find rows
    in a pool where they lie (``MemoryState.rows_in_place``).

    Args:
        q: of the dtype and on the device of the queries.
        state: of the pool.
    """
    one_token = layout.slots == 1 and layout.full and not layout.final
    if not one_token or config.optimizer != "sgd" or not may_write(state.beta):
        return False
    return kernels.chosen(network_of(config), q, state.weights)


def _products_dtype(q: Tensor, weights: FastWeights) -> torch.dtype:
    """In which the tokens of a round, q [R, H, n, d], are multiplied with the fast weights."""
    work = q.shape[2] * math.prod(weights["down"].shape[-2:])
    worth = q.shape[2] >= MANY and (q.device.type != "cpu" or work >= WORK)
    if q.dtype == torch.bfloat16 and worth and _switch.forced != "wide":
        return q.dtype
    return accumulation_dtype(q.dtype)


def _read_and_write(
    network: MemoryNetwork,
    tokens: list[Tensor],
    step: Round,
    state: MemoryState,
    targets: FastWeights,
    chunk: int,
    config: MemoryConfig,
) -> tuple[Tensor, MemoryState]:
    """One round: what its tokens read, and the state after it."""
    q, k, v, eta, beta = tokens
    beta = beta.sum((2, 3))
    # Whoever left the rows where they lie has asked ``finds_rows``.
    fused = state.at is not None or kernels.chosen(network, q, state.weights)
    in_place = may_write(state.beta)
    scales: Scales | None = None
    if fused and in_place and q.shape[2] <= FEW:
        scaled = targets if config.norm == "internal" else {}
        slots = None if state.at is None else state.at.index
        read = kernels.decode_step(
            network, q, k, v, eta, state.weights, scaled, state.gradient, slots
        )
        state.beta.add_(beta)
    else:
        assert state.at is None
        # The sums are zero in those rows where a chunk begins.
        into = state.gradient if in_place and not step.all_open else None
        scales = _scales(state.weights, targets, config)
        products = _products_dtype(q, state.weights)
        read, gradient = read_and_sum(
            network, q, k, v, eta, state.weights, scales, products, sums=into
        )
        if into is None and not step.all_open:
            gradient = {name: state.gradient[name] + g for name, g in gradient.items()}
        state = MemoryState(state.weights, state.momentum, gradient, state.beta + beta)
    if not step.some_close:
        return read, state
    if fused and config.optimizer == "sgd":
        rows = None if step.all_close else step.closes.to(q.device)
        return read, kernels.write(state, targets, chunk, config, rows, in_place=in_place)
    if scales is None:
        scales = _scales(state.weights, targets, config)
    written = _write(state, scales, targets, chunk, config)
    return read, written if step.all_close else choose(step.closes, written, state)


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
