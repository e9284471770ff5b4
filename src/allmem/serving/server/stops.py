"""Stop strings in a text that comes in pieces, wherever the borders of the pieces are.

Of several, the one that is complete first ends the text. Text that might turn out to be part of one
is held back.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["StopStrings"]


class StopStrings:
    """Watches one answer.

    Args:
        stops: none of them empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False
        """Whether the text has ended."""

    def push(self, piece: str) -> str:
        """What may be shown now."""
        text = self._held + piece
        # By their ends: the text would have ended there, had it come in single characters.
        ends = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            self.found, self._held = True, ""
            return text[: min(ends)[1]]
        shown = len(text) - self._possible(text)
        self._held = text[shown:]
        return text[:shown]

    def rest(self) -> str:
        """What was held back, at the end."""
        held, self._held = self._held, ""
        return held

    def _possible(self, text: str) -> int:
        """Length of the longest end of a text with which a stop string begins."""
        longest = min(len(text), max(map(len, self._stops), default=1) - 1)
        for length in range(longest, 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0
