"""A text of made-up words whose counts fall as a power of their rank, and the question for the
three commonest (RULER's ``freq_words_extraction.py``)."""

from __future__ import annotations

import math
import string
from dataclasses import dataclass

from allmem.evaluation.benchmarks import benchmark
from allmem.evaluation.suites.ruler_tasks.sample import Draw, Generator, Sample

__all__ = ["FrequentWords"]

LETTERS = 6
TOKENS_PER_WORD = 50
"""Of the length, for each word of the vocabulary."""
ASKED = 3
NOISE = "..."
"""Takes the place of the commonest word, and is no answer."""
FEWEST = 80
"""Words with which the counts of the ranks 2 to 5 surely differ, for alpha = 2."""


@dataclass(frozen=True)
class FrequentWords(Generator):
    """The size is the number of words that the text would have, were no count rounded down."""

    alpha: float

    def smallest(self, draw: Draw) -> int:
        return FEWEST

    def make(self, draw: Draw, size: int) -> Sample:
        numbers = draw.random()
        texts = benchmark("ruler")["templates"]["freq_words_extraction"]
        vocabulary: dict[str, None] = {}
        room = draw.length - texts["tokens_to_generate"]
        while len(vocabulary) < max(room // TOKENS_PER_WORD, ASKED + 2):
            vocabulary["".join(numbers.choices(string.ascii_lowercase, k=LETTERS))] = None
        ranked = [NOISE, *list(vocabulary)[1:]]
        total = _zeta(self.alpha)
        text = [
            word
            for rank, word in enumerate(ranked, start=1)
            for _ in range(int(size * rank**-self.alpha / total))
        ]
        numbers.shuffle(text)
        return Sample(
            texts["template"].format(context=" ".join(text)),
            texts["answer_prefix"],
            tuple(ranked[1 : ASKED + 1]),
        )


def _zeta(s: float) -> float:
    """Riemann's zeta function for s > 1: Euler and Maclaurin's sum, beyond float64's precision."""
    n = 1000
    head = math.fsum(k**-s for k in range(1, n))
    return head + n ** (1 - s) / (s - 1) + n**-s / 2 + s * n ** (-s - 1) / 12
