"""The tokens of one answer to its text, as much of it as may be shown.

Tokens are told (for log-probabilities) with the text that begins in them, never before: they would
give away text that is held back.
"""

from __future__ import annotations

from dataclasses import dataclass

from allmem.reading import Detokenizer
from allmem.serving.engine import GeneratedToken
from allmem.serving.server.responses import Finish
from allmem.serving.server.stops import StopStrings

__all__ = ["AnswerText", "Piece", "ToldToken"]


@dataclass(frozen=True)
class ToldToken:
    """A token that a client is told."""

    token: GeneratedToken
    offset: int
    """Characters of the answer before it."""


@dataclass(frozen=True)
class Piece:
    """What there is new of an answer."""

    text: str
    tokens: tuple[ToldToken, ...] = ()
    finish: Finish | None = None


class AnswerText:
    """Follows one answer."""

    def __init__(self, detokenizer: Detokenizer, stops: StopStrings) -> None:
        self._detokenizer = detokenizer
        self._stops = stops
        self._untold: list[ToldToken] = []
        self._decoded = self._shown = 0
        self.count = 0
        """Tokens so far, with the one that ends the answer."""

    def push(self, token: GeneratedToken) -> Piece | None:
        """What a token adds, if anything; with ``finish`` in it the answer is over."""
        self.count += 1
        text = ""
        # A token that ends the answer is no part of it.
        if token.finish != "stop":
            self._untold.append(ToldToken(token, self._decoded))
            text = self._read(self._detokenizer.push(token.id))
        if token.finish is not None and not self._stops.found:
            text += self._read(self._detokenizer.rest())
            text += self._stops.rest()
        finish: Finish | None = "stop" if self._stops.found else token.finish
        self._shown += len(text)
        told = self._tell(everything=finish is not None and not self._stops.found)
        return Piece(text, told, finish) if text or told or finish else None

    def _read(self, text: str) -> str:
        self._decoded += len(text)
        return self._stops.push(text)

    def _tell(self, everything: bool) -> tuple[ToldToken, ...]:
        told = [t for t in self._untold if everything or t.offset < self._shown]
        del self._untold[: len(told)]
        return tuple(told)
