"""What happens to the tokens of one round: they are read, and their gradients added up.

A custom autograd function: it keeps nothing but its inputs and computes the rest again in its
backward pass, so what training needs between the passes is q, k, v and, for every chunk, the fast
weights. On a CPU the tokens go through in blocks whose hidden vectors fit into the cache.

Letters: R rows, H memory heads, N tokens of a round, d head size, h width, M fast matrices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from allmem.memory import kernels
from allmem.memory.network import Factors, MemoryNetwork, Scales, as_sums
from allmem.memory.state import FastWeights

__all__ = ["read_and_sum", "read_only"]

CACHED = 1 << 20
"""Numbers of one hidden tensor of a block on a CPU, [R, H, n, h]: some ten of them are in use."""
FEWEST = 64
"""Tokens of a block at least: with fewer, products with the weights are slow."""


def read_and_sum(
    network: MemoryNetwork,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    weights: FastWeights,
    scales: Scales,
    products: torch.dtype,
    sums: FastWeights | None = None,
) -> tuple[Tensor, FastWeights]:
    """Read every token and add up the gradients of all.

    Args:
        q, k, v: [R, H, N, d].
        eta: [R, H, N, M].
        weights: F, in the accumulation dtype.
        scales: of rows, see ``allmem.memory.network.Scales``.
        products: in which tokens are multiplied with weights.
        sums: what to add to, in its place; only where no gradients are recorded. ``None``: zeros.

    Returns:
        M(q; F), [R, H, N, d] in the dtype of ``q``; and {matrix: [R, H, out, in]}, the sums over
        tokens of eta_t dl_t/dF', in the dtype of the weights.
    """
    if torch.is_grad_enabled():
        assert sums is None
        read, *found = _ReadAndSum.apply(
            network, products, tuple(scales), tuple(weights), q, k, v, eta,
            *scales.values(), *weights.values(),
        )  # fmt: skip
        return read, dict(zip(weights, found, strict=True))
    return _forward(network, q, k, v, eta, weights, scales, products, sums)


def _forward(
    network: MemoryNetwork,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    weights: FastWeights,
    scales: Scales,
    products: torch.dtype,
    sums: FastWeights | None,
) -> tuple[Tensor, FastWeights]:
    rounded, scaled = _flat(weights, products), _flat(scales, products)
    # Views, which ``flatten`` would not always give.
    totals = {name: s.view(-1, *s.shape[2:]) for name, s in (sums or {}).items()}
    pieces = []
    for q_now, k_now, v_now, eta_now in _blocks(weights["down"], products, q, k, v, eta):
        tokens = q_now, k_now, v_now, eta_now
        if kernels.chosen(network, q_now, rounded):
            read, factors = kernels.step(network, *tokens, rounded, scaled)
        else:
            read, factors = network.step(*tokens, rounded, scaled)
        pieces.append(read.to(q.dtype))
        for name, pair in factors.items():
            if name in totals:
                _add_product(totals[name], pair)
            else:
                totals[name] = (pair[0].mT @ pair[1]).to(weights[name].dtype)
    read = pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1)
    if sums is None:
        sums = {name: totals[name].view_as(w) for name, w in weights.items()}
    return read.view_as(q), sums


class _ReadAndSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        network: MemoryNetwork,
        products: torch.dtype,
        scaled: tuple[str, ...],
        names: tuple[str, ...],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        eta: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.network, ctx.products, ctx.scaled, ctx.names = network, products, scaled, names
        ctx.save_for_backward(q, k, v, eta, *tensors)
        scales = dict(zip(scaled, tensors, strict=False))
        weights = dict(zip(names, tensors[len(scaled) :], strict=True))
        read, sums = _forward(network, q, k, v, eta, weights, scales, products, None)
        return read, *sums.values()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_read: Tensor | None, *d_found: Tensor | None) -> tuple[Any, ...]:
        # Once: where layers are checkpointed, every look computes them again.
        saved = ctx.saved_tensors
        # Autocast may be on, and would do the sums in half precision.
        with torch.autocast(saved[0].device.type, enabled=False):
            return _ReadAndSum._gradients(ctx, saved, d_read, d_found)

    @staticmethod
    def _gradients(
        ctx: Any,
        saved: tuple[Tensor, ...],
        d_read: Tensor | None,
        d_found: tuple[Tensor | None, ...],
    ) -> tuple[Any, ...]:
        q, k, v, eta, *tensors = saved
        scales = dict(zip(ctx.scaled, tensors, strict=False))
        weights = dict(zip(ctx.names, tensors[len(scales) :], strict=True))
        if all(d is None for d in d_found):
            # The last chunk: nobody read what it wrote.
            if d_read is None:
                return (None,) * (8 + len(tensors))
            d_q, *d_all = _read_backward(ctx.network, ctx.products, q, weights, d_read)
            return (None,) * 4 + (d_q, None, None, None, *[None] * len(scales), *d_all)
        d_read = torch.zeros_like(q) if d_read is None else d_read
        d_sums = {
            name: torch.zeros_like(weights[name]) if d is None else d
            for name, d in zip(ctx.names, d_found, strict=True)
        }
        given = [_flat(x, ctx.products) for x in (weights, scales, d_sums)]
        pieces: list[tuple[Tensor, ...]] = []
        d_weights = {name: torch.zeros_like(w) for name, w in weights.items()}
        d_scales = {name: torch.zeros_like(s) for name, s in scales.items()}
        for *tokens, d_now in _blocks(weights["down"], ctx.products, q, k, v, eta, d_read):
            found = ctx.network.step_backward(*tokens, given[0], given[1], d_now, given[2])
            pieces.append((found.q, found.k, found.v, found.eta))
            _add_products(d_weights, found.weights)
            for name, d in found.scales.items():
                d_scales[name].add_(d.view_as(scales[name]))
        d_tokens = [
            torch.cat(d, 1).to(x.dtype).view_as(x)
            for d, x in zip(zip(*pieces, strict=True), (q, k, v, eta), strict=True)
        ]
        return (None,) * 4 + (*d_tokens, *d_scales.values(), *d_weights.values())


def read_only(
    network: MemoryNetwork, q: Tensor, weights: FastWeights, products: torch.dtype
) -> Tensor:
    """Read every token, where nobody will ask what was written: M(q; F), [R, H, N, d].

    Args: as for ``read_and_sum``. Weights of which all rows are one in memory are multiplied once.
    """
    R, H, N, d = q.shape
    if R > 1 and all(w.stride(0) == 0 for w in weights.values()):
        together = q.transpose(0, 1).reshape(1, H, R * N, d)
        read = read_only(network, together, {name: w[:1] for name, w in weights.items()}, products)
        return read.view(H, R, N, d).transpose(0, 1)
    if torch.is_grad_enabled():
        found: Tensor = _Read.apply(network, products, tuple(weights), q, *weights.values())
        return found
    rounded = _flat(weights, products)
    pieces = [
        network.read(q_now, rounded).to(q.dtype)
        for (q_now,) in _blocks(weights["down"], products, q)
    ]
    return torch.cat(pieces, 1).view_as(q)


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        network: MemoryNetwork,
        products: torch.dtype,
        names: tuple[str, ...],
        q: Tensor,
        *weights: Tensor,
    ) -> Tensor:
        ctx.network, ctx.products, ctx.names = network, products, names
        ctx.save_for_backward(q, *weights)
        return read_only(network, q, dict(zip(names, weights, strict=True)), products)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_read: Tensor) -> tuple[Any, ...]:
        q, *tensors = ctx.saved_tensors
        weights = dict(zip(ctx.names, tensors, strict=True))
        with torch.autocast(q.device.type, enabled=False):
            found = _read_backward(ctx.network, ctx.products, q, weights, d_read)
        return None, None, None, *found


def _read_backward(
    network: MemoryNetwork, products: torch.dtype, q: Tensor, weights: FastWeights, d_read: Tensor
) -> tuple[Tensor, ...]:
    """The derivative of the read: of q, and of every matrix."""
    rounded = _flat(weights, products)
    d_weights = {name: torch.zeros_like(w) for name, w in weights.items()}
    pieces = []
    for q_now, d_now in _blocks(weights["down"], products, q, d_read):
        d_q, factors = network.read_backward(q_now, rounded, d_now)
        pieces.append(d_q)
        _add_products(d_weights, factors)
    return torch.cat(pieces, 1).to(q.dtype).view_as(q), *d_weights.values()


def _blocks(down: Tensor, products: torch.dtype, *tokens: Tensor) -> Iterator[list[Tensor]]:
    """The tokens [R, H, N, ...] in the dtype of products, block by block: [R H, n, ...]."""
    size = tokens[0].shape[2]
    if down.device.type == "cpu":
        rows, heads, _, width = down.shape
        size = max(FEWEST, min(size, CACHED // (rows * heads * width)))
    for block in zip(*(x.split(size, 2) for x in tokens), strict=True):
        # Heads before tokens in memory too: every tensor is gone through several times.
        yield [x.to(products).contiguous().flatten(0, 1) for x in block]


def _flat(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """[R, H, ...] as [R H, ...]."""
    return {name: t.to(dtype).flatten(0, 1) for name, t in tensors.items()}


def _add_products(totals: FastWeights, factors: Mapping[str, list[Factors]]) -> None:
    """The same for every matrix, into [R, H, out, in]."""
    for name, pairs in factors.items():
        for pair in pairs:
            _add_product(totals[name].view(-1, *totals[name].shape[2:]), pair)


def _add_product(total: Tensor, pair: Factors) -> None:
    """total += sum over tokens."""
    left, right = pair
    if as_sums(left.shape[1]):
        total.addcmul_(left.mT, right)
    elif left.dtype == total.dtype:
        # Not ``baddbmm_``, whose products torch's counter does not see.
        torch.baddbmm(total, left.mT, right, out=total)
    else:
        total.add_(left.mT @ right)
