"""Taking the memory out of a place in a text and putting another one in, to see what it was for.

Only what was written is exchanged, fast weights and their momentum. The attention's window, the
inputs that convolutions still hold, and the place in the text stay. What an open chunk has summed
up belongs to the weights it was summed up at: it begins anew, for the memory that was there too,
so that all variants lose the same (at the border of a chunk: nothing).

Letters: R rows, H memory heads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from allmem.errors import AllMemError
from allmem.memory.state import FastWeights, MemoryState, UnitState
from allmem.mixers.layer import LayerState
from allmem.models.cache import AllMemCache

__all__ = ["intact", "replaced", "shuffled"]

SEED_STRIDE = 1_000_003
"""Keeps the random numbers of layers and seeds apart."""


def intact(cache: AllMemCache) -> AllMemCache:
    """A copy with its own memory put in again: what the others are compared with."""
    return _with_memories(cache, lambda layer, memory: memory)


def replaced(cache: AllMemCache, other: Sequence[LayerState]) -> AllMemCache:
    """A copy with other memories: another text's, or those before the first token."""
    units = [_unit(state) for state in other]

    def take(layer: int, memory: MemoryState) -> MemoryState:
        unit = units[layer]
        assert unit is not None
        return unit.memory

    return _with_memories(cache, take)


def shuffled(cache: AllMemCache, seed: int) -> AllMemCache:
    """A copy in which the output rows of every fast matrix have changed places, each matrix and
    head by itself: the same norms, and no meaning. Momentum follows its weights."""

    def shuffle(layer: int, memory: MemoryState) -> MemoryState:
        generator = torch.Generator().manual_seed(seed + layer * SEED_STRIDE)
        weights, momentum = {}, {}
        for name, matrix in sorted(memory.weights.items()):
            heads, out = matrix.shape[1:3]
            orders = [torch.randperm(out, generator=generator) for _ in range(heads)]
            order = torch.stack(orders).to(matrix.device)[None, :, :, None]  # [1, H, out, 1]
            weights[name] = matrix.gather(2, order.expand_as(matrix))
            if name in memory.momentum:
                momentum[name] = memory.momentum[name].gather(2, order.expand_as(matrix))
        return dataclasses.replace(memory, weights=weights, momentum=momentum)

    return _with_memories(cache, shuffle)


def _with_memories(
    cache: AllMemCache, change: Callable[[int, MemoryState], MemoryState]
) -> AllMemCache:
    """A copy with changed memories, whose open chunks begin anew.

    Raises:
        AllMemError: if no layer has a memory of this kind, or nothing was read.
    """
    if not any(_unit(state) for state in cache.states or []):
        raise AllMemError(
            "there is no memory to exchange: nothing was read yet, or no layer has an allmem memory"
        )
    states = []
    for layer, state in enumerate(cache.states or []):
        copy = state.clone()
        unit = _unit(copy)
        if unit is not None:
            memory = change(layer, unit.memory)
            copy = LayerState(copy.attention, dataclasses.replace(unit, memory=_closed(memory)))
        states.append(copy)
    return cache.with_states(states)


def _unit(state: LayerState) -> UnitState | None:
    return state.memory if isinstance(state.memory, UnitState) else None


def _closed(memory: MemoryState) -> MemoryState:
    """A copy of weights and momentum, with an empty chunk."""

    def copied(matrices: FastWeights) -> FastWeights:
        return {name: matrix.clone() for name, matrix in matrices.items()}

    def emptied(sums: Tensor) -> Tensor:
        return torch.zeros_like(sums)

    return MemoryState(
        copied(memory.weights),
        copied(memory.momentum),
        {name: emptied(sums) for name, sums in memory.gradient.items()},
        emptied(memory.beta),
    )
