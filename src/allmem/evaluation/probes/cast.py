"""Who and what the facts of one document are about: names, values and made-up words, none twice,
and none that the prose holds already.

The sentences are those of the builders of training samples (``allmem.data.builders.phrases``).
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

from allmem.data.builders.key_value import LETTERS, VOWELS
from allmem.data.builders.phrases import SUBJECTS, VALUES, Subject, draw_names, draw_values
from allmem.evaluation.probes.filler import Filler

__all__ = ["Cast", "Fact"]

SPARE = 4
"""Numbers drawn for one that is used, since some may be taken."""


@dataclass(frozen=True)
class Fact:
    """Somebody's values of one thing, the last of them the one that holds."""

    subject: Subject
    name: str
    values: tuple[str, ...]

    @property
    def stated(self) -> list[str]:
        """A sentence for every value."""
        return [self.subject.states.format(name=self.name, value=v) for v in self.values]

    @property
    def changed(self) -> list[str]:
        """The first value, and how it changes into the next ones."""
        later = [self.subject.changes.format(name=self.name, value=v) for v in self.values[1:]]
        return [*self.stated[:1], *later]

    @property
    def prefix(self) -> str:
        """How an answer begins that states it."""
        return self.subject.states.partition("{value}")[0].format(name=self.name).rstrip()


class Cast:
    """Draws for one document.

    Args:
        rng: of the document.
    """

    def __init__(self, rng: random.Random, language: str, filler: Filler) -> None:
        self.rng, self.language, self.filler = rng, language, filler
        self._names = iter(
            name for name in draw_names(rng, language, 400) if not filler.holds(name)
        )
        self._used: set[str] = set()

    def name(self) -> str:
        """Somebody new."""
        return next(self._names)

    def fact(self, values: int = 1, kinds: Iterable[str] = ("number", "city", "thing")) -> Fact:
        """Somebody new, and so many values of one thing.

        Args:
            kinds: of values; one of which there are too few left gives way to a number.
        """
        allowed = [s for s in SUBJECTS[self.language] if s.values in kinds]
        subject = self.rng.choice(allowed)
        drawn = self._draw(subject.values, values)
        if len(drawn) < values:
            subject = SUBJECTS[self.language][0]
            drawn = self._draw(subject.values, values)
        return Fact(subject, self.name(), tuple(drawn))

    def values(self, kind: str, count: int) -> list[str]:
        """So many new values, as far as there are so many."""
        return self._draw(kind, count)

    def word(self) -> str:
        """A made-up word."""
        while True:
            rng = self.rng
            word = "".join(rng.choice(LETTERS) + rng.choice(VOWELS) for _ in range(4))
            if self._take(word):
                return word

    def _draw(self, kind: str, count: int) -> list[str]:
        pool = VALUES[self.language].get(kind)
        drawn = draw_values(
            self.rng, self.language, kind, SPARE * count if pool is None else len(pool)
        )
        free = [
            value for value in drawn if value not in self._used and not self.filler.holds(value)
        ]
        if len(free) < count:
            return []
        self._used.update(free[:count])
        return free[:count]

    def _take(self, text: str) -> bool:
        """Whether a text is new; then it is used from now on."""
        if text in self._used or self.filler.holds(text):
            return False
        self._used.add(text)
        return True
