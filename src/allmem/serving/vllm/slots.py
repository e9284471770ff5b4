"""Where vLLM keeps the states of its sequences: one slot for all that a sequence leaves behind.

vLLM hands out slots (it calls them blocks), copies them for its prefix cache and tells by number
which sequence has which; how many there are follows from the bytes of all tensors of all layers. In
the memory that it allocates for them they lie tensor by tensor, not slot by slot, so that a tensor
of neighbouring slots is dense and can be read where it is. Nothing here knows of a step's tokens.

Letters: P slots, R rows of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.layers.mamba.abstract import MambaBase
from vllm.v1.attention.backends.registry import MambaAttentionBackendEnum

from allmem.mixers.layer import LayerMixer, LayerState
from allmem.models.flat import Group
from allmem.serving.vllm import STATE_KIND
from allmem.state import write_into

__all__ = ["StateSlots"]

ALIGNMENT = 16
"""Bytes to whose multiples tensors are aligned as far as they can be: vector loads of GPUs want no
more."""


class StateSlots(MambaBase):
    """The states of all layers, as vLLM's cache manager and ``FlatCall`` each want them.

    Args:
        beginning: the state of every layer before the first token, of one row.
    """

    def __init__(self, beginning: Sequence[LayerState]) -> None:
        self.beginning = list(beginning)
        self.kv_cache: tuple[Tensor, ...] = ()
        self._states: list[LayerState] = []
        named = [
            (layer, name, tensor)
            for layer, state in enumerate(self.beginning)
            for name, tensor in state.tensors().items()
            if tensor.numel()
        ]
        # There is no room between tensors: those that would push the others off their alignment
        # come last, wide numbers before narrow ones.
        named.sort(key=lambda n: (n[2].nbytes % ALIGNMENT != 0, -n[2].element_size()))
        self._places = [(layer, name) for layer, name, _ in named]
        self._parts = [tensor[0] for *_, tensor in named]

    # What vLLM asks

    @property
    def mamba_type(self) -> Any:
        return MambaAttentionBackendEnum[STATE_KIND]

    def get_state_shape(self) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(part.shape) for part in self._parts)

    def get_state_dtype(self) -> tuple[torch.dtype, ...]:
        return tuple(part.dtype for part in self._parts)

    def bind_kv_cache(self, kv_cache: Tensor) -> None:
        """Take over the memory that vLLM has allocated, [P, 1, 1, bytes of a slot]."""
        slots, memory = len(kv_cache), kv_cache.view(-1)
        found: list[dict[str, Tensor]] = [
            # What is empty needs no memory.
            {n: t.expand(slots, *t.shape[1:]) for n, t in state.tensors().items() if not t.numel()}
            for state in self.beginning
        ]
        tensors, at = [], 0
        for (layer, name), part in zip(self._places, self._parts, strict=True):
            size = slots * part.nbytes
            tensors.append(memory[at : at + size].view(part.dtype).view(slots, *part.shape))
            found[layer][name] = tensors[-1]
            at += size
        # What vLLM copies slots by.
        self.kv_cache = tuple(tensors)
        self._states = [
            state.with_tensors(tensors)
            for state, tensors in zip(self.beginning, found, strict=True)
        ]

    @property
    def nbytes(self) -> int:
        """Of one slot."""
        return sum(part.nbytes for part in self._parts)

    # What a step does

    def begin(self, slot: int) -> None:
        """Make a slot ready for a new text, whatever the last one left there."""
        for (layer, name), tensor in zip(self._places, self.kv_cache, strict=True):
            tensor[slot].copy_(self.beginning[layer].tensors()[name][0])

    def take(self, mixed: LayerMixer, layer: int, group: Group) -> LayerState:
        """As ``States.take``; neighbouring slots themselves, which are written in place."""
        first, count = int(group.slots[0]), len(group.slots)
        if torch.equal(group.slots, torch.arange(first, first + count)):
            group.memo[layer] = self._states[layer].map(lambda t: t[first : first + count])
            return group.memo[layer]
        return group.take(mixed, self._states[layer])

    def put(self, mixed: LayerMixer, layer: int, group: Group, state: LayerState) -> None:
        """As ``States.put``."""
        if layer in group.memo:
            write_into(group.memo.pop(layer), state)
        else:
            group.put(self._states[layer], state)
