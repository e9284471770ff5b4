"""What a generator of RULER makes."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from dataclasses import dataclass

__all__ = ["Draw", "Generator", "Sample"]


@dataclass(frozen=True)
class Sample:
    """A question about a text."""

    text: str
    answer_prefix: str
    answers: tuple[str, ...]
    evidence: tuple[str, ...] = ()
    """Passages of the text that tell the answers; none where the whole text does."""
    material: str = "generated"
    """What the text is made of, for the row: other material than RULER's is not comparable."""


@dataclass(frozen=True)
class Draw:
    """Which sample is to be made."""

    index: int
    length: int
    """Tokens that prompt and answer are to fill; some parameters depend on it."""
    seed: str
    """All that is random in it; made again in another size, it draws the same numbers."""

    def random(self) -> random.Random:
        """Its random numbers, from the first."""
        return random.Random(self.seed)


class Generator(ABC):
    """Makes samples of any size."""

    @abstractmethod
    def make(self, draw: Draw, size: int) -> Sample:
        """A sample of a size.

        Args:
            size: of the text around the answer, in words, sentences or documents; at least
                ``smallest``.
        """

    @abstractmethod
    def smallest(self, draw: Draw) -> int:
        """The least size that a sample can have."""

    def samples(self) -> int | None:
        """How many there can be; ``None`` if there is no end."""
        return None
