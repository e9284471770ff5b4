"""States of texts that have ended, for texts that go on from them: the next turn of a chat, whose
client sends the whole conversation again.

A state is all that is needed to go on, and of one size however long the text was. What is read on
from a kept state is what reading everything anew gives, up to rounding.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from allmem.mixers.layer import LayerState

__all__ = ["KeptStates"]

Tokens = tuple[int, ...]


class KeptStates:
    """The states of the texts that ended last, or were gone on with last.

    Args:
        most: how many.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._states: OrderedDict[Tokens, list[LayerState]] = OrderedDict()

    def add(self, tokens: Sequence[int], states: list[LayerState]) -> None:
        """Keep what ``tokens`` left behind; one row a layer, owned by this object from now on."""
        if not self.most:
            return
        self._states[tuple(tokens)] = states
        self._states.move_to_end(tuple(tokens))
        while len(self._states) > self.most:
            self._states.popitem(last=False)

    def beginning_of(self, prompt: Sequence[int]) -> tuple[int, list[LayerState]] | None:
        """The longest kept text that a prompt begins with and goes beyond: how many tokens it has,
        and its states, to be copied."""
        prompt = tuple(prompt)
        fitting = [
            tokens
            for tokens in self._states
            if len(tokens) < len(prompt) and prompt[: len(tokens)] == tokens
        ]
        if not fitting:
            return None
        longest = max(fitting, key=len)
        self._states.move_to_end(longest)
        return len(longest), self._states[longest]

    @property
    def nbytes(self) -> int:
        """Bytes of all."""
        return sum(state.nbytes for states in list(self._states.values()) for state in states)
