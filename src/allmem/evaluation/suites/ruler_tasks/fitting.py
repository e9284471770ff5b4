"""The size with which a sample fills a length.

RULER looks for one size for all samples of a length, and takes a fixed step (of 500 words, 25
lines, 10 documents) off those that come out too long. Here each sample is made as large as fits, to
about one word, line or document: none is longer than RULER allows, and few are much shorter.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from allmem.evaluation.suites.ruler_tasks.sample import Draw, Generator, Sample

__all__ = ["Fitter"]

PROBE = 64
"""By how much a second size is larger than the smallest."""
ROUNDS = 8


@dataclass(frozen=True)
class Fitter:
    """Fits the samples of one length.

    Args:
        tokens: of a sample's prompt, chat template and answer prefix included.
        budget: tokens that a prompt may have.
    """

    generator: Generator
    tokens: Callable[[Sample], int]
    budget: int

    def estimate(self, draw: Draw) -> tuple[int, float]:
        """A size that about fills the budget, and the tokens per size from the smallest to it."""
        smallest = self.generator.smallest(draw)
        base = self._tokens(draw, smallest)
        size, slope, new = smallest, 1.0, smallest + PROBE
        for _ in range(ROUNDS):
            if new == size:
                break
            size = new
            slope = max((self._tokens(draw, size) - base) / (size - smallest), 1e-3)
            # One more than the smallest, so that there is a slope.
            new = smallest + max(int((self.budget - base) / slope), 1)
        return new, slope

    def fit(self, draw: Draw, size: int, slope: float) -> tuple[Sample, int] | None:
        """The sample, about as large as fits, and its tokens; ``None`` if the smallest does not
        fit.

        Args:
            size: to begin with.
            slope: tokens per size.
        """
        smallest = self.generator.smallest(draw)
        low, high, rounds = smallest - 1, None, 0
        size, best = max(size, smallest), None
        while best is None or rounds < ROUNDS:
            sample = self.generator.make(draw, size)
            tokens = self.tokens(sample)
            if tokens <= self.budget:
                low, best = size, (sample, tokens)
            else:
                high = size
            # Towards the budget, between what is known to fit and what is known not to.
            step = math.floor((self.budget - tokens) / slope)
            size = max(size + step, low + 1)
            if high is not None:
                size = min(size, high - 1)
            if step == 0 or size <= low:
                break
            rounds += 1
        return best

    def _tokens(self, draw: Draw, size: int) -> int:
        return self.tokens(self.generator.make(draw, size))
