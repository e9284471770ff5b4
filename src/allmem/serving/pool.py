"""Where the embedded engine keeps the states of its sequences: in slots, side by side.

A slot's state is written in place as far as the mixers do so; a group of neighbouring slots is read
and written without a copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from allmem.config import WindowConfig
from allmem.mixers.layer import LayerMixer, LayerState
from allmem.models.flat import Group
from allmem.models.modeling import AllMemForCausalLM
from allmem.state import write_into

__all__ = ["BySlot", "GrowingStates", "StatePool", "pool_for"]


@dataclass(frozen=True)
class BySlot:
    """States of all slots, [P, ...] for every layer, of which a call finds its own by slots that
    only the device need know."""

    states: list[LayerState]

    def take(self, mixed: LayerMixer, layer: int, group: Group) -> LayerState:
        """As ``States.take``."""
        return group.take(mixed, self.states[layer])

    def put(self, mixed: LayerMixer, layer: int, group: Group, state: LayerState) -> None:
        """As ``States.put``."""
        group.put(self.states[layer], state)


class StatePool:
    """States of a model whose state has one size, however long the text.

    Args:
        model: whose states.
        slots: how many sequences.
        window, chunk: read with these in place of the configured ones.
    """

    grows = False

    def __init__(
        self,
        model: AllMemForCausalLM,
        slots: int,
        window: WindowConfig | None = None,
        chunk: int | None = None,
    ) -> None:
        self._states = model.init_states(slots, model.device, window, chunk)
        self.by_slot = BySlot(self._states)
        self._beginning = model.init_states(1, model.device, window, chunk)
        self._views: dict[tuple[int, int, int], LayerState] = {}

    def begin(self, slot: int) -> None:
        """Make a slot ready for a new text."""
        self.go_on(slot, self._beginning)

    def end(self, slot: int) -> None:
        """A slot's text has ended: nothing, since the next one begins anew."""

    def copy_of(self, slot: int) -> list[LayerState]:
        """What a text left behind, one row a layer."""
        return [self._view(layer, slot, slot + 1).clone() for layer in range(len(self._states))]

    def go_on(self, slot: int, states: list[LayerState]) -> None:
        """Make a slot ready to go on from what ``copy_of`` gave."""
        for layer, state in enumerate(states):
            write_into(self._view(layer, slot, slot + 1), state)

    def take(self, mixed: LayerMixer, layer: int, group: Group) -> LayerState:
        """As ``States.take``."""
        span = _span(group)
        if span is None:
            return self.by_slot.take(mixed, layer, group)
        return self._view(layer, *span)

    def put(self, mixed: LayerMixer, layer: int, group: Group, state: LayerState) -> None:
        """As ``States.put``."""
        span = _span(group)
        if span is not None:
            write_into(self._view(layer, *span), state)
        else:
            self.by_slot.put(mixed, layer, group, state)

    @property
    def nbytes(self) -> int:
        """Bytes of all slots."""
        return sum(state.nbytes for state in self._states)

    def _view(self, layer: int, first: int, end: int) -> LayerState:
        key = layer, first, end
        if key not in self._views:
            self._views[key] = self._states[layer].map(lambda t: t[first:end])
        return self._views[key]


class GrowingStates:
    """States of a model with layers that keep everything: every sequence's on its own, so that
    groups are of one row.

    Arguments as for ``StatePool``.
    """

    grows = True

    def __init__(
        self,
        model: AllMemForCausalLM,
        slots: int,
        window: WindowConfig | None = None,
        chunk: int | None = None,
    ) -> None:
        self._model = model
        self._how = window, chunk
        self._states: dict[int, list[LayerState]] = {}

    def begin(self, slot: int) -> None:
        """Make a slot ready for a new text."""
        self._states[slot] = self._model.init_states(1, self._model.device, *self._how)

    def end(self, slot: int) -> None:
        """Drop what a text left behind."""
        self._states.pop(slot, None)

    def copy_of(self, slot: int) -> list[LayerState]:
        """As for ``StatePool``."""
        return [state.clone() for state in self._states[slot]]

    def go_on(self, slot: int, states: list[LayerState]) -> None:
        """As for ``StatePool``."""
        self._states[slot] = [state.clone() for state in states]

    def take(self, mixed: LayerMixer, layer: int, group: Group) -> LayerState:
        """As ``States.take``."""
        return self._states[int(group.slots)][layer]

    def put(self, mixed: LayerMixer, layer: int, group: Group, state: LayerState) -> None:
        """As ``States.put``."""
        self._states[int(group.slots)][layer] = state

    @property
    def nbytes(self) -> int:
        """Bytes of all sequences that are under way."""
        return sum(s.nbytes for states in list(self._states.values()) for s in list(states))


def pool_for(
    model: AllMemForCausalLM,
    slots: int,
    window: WindowConfig | None = None,
    chunk: int | None = None,
) -> StatePool | GrowingStates:
    """What fits a model's layers; arguments as for ``StatePool``."""
    constant = all(mixed.capabilities.constant_state for mixed in model.mixers())
    kind: Any = StatePool if constant else GrowingStates
    return kind(model, slots, window, chunk)


def _span(group: Group) -> tuple[int, int] | None:
    """First slot and end, if a group's rows lie side by side in order."""
    if "span" not in group.memo:
        slots = group.slots
        first = int(slots[0])
        beside = torch.equal(slots, torch.arange(first, first + len(slots)))
        group.memo["span"] = (first, first + len(slots)) if beside else None
    return group.memo["span"]
