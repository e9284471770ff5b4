"""Chains of assignments among noise, and the question which variables hold a value, after a short
example with its answer (RULER's ``variable_tracking.py``)."""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from allmem.evaluation.benchmarks import benchmark
from allmem.evaluation.suites.ruler_tasks.haystacks import insert_lines
from allmem.evaluation.suites.ruler_tasks.sample import Draw, Generator, Sample

__all__ = ["VariableTracking"]

LETTERS, EXAMPLE_LETTERS = 5, 3
"""Of a variable's name, in the question and in its example."""
EXAMPLE_TOKENS = 500
"""Which the example fills with noise."""


@dataclass(frozen=True)
class VariableTracking(Generator):
    """Parameters have the names that they have in RULER's ``synthetic.yaml``; the size is the
    number of lines of noise."""

    num_chains: int
    num_hops: int
    tokens: Callable[[str], int]
    """Of a text, for the example's length."""

    def smallest(self, draw: Draw) -> int:
        return self.num_hops + 1

    def make(self, draw: Draw, size: int) -> Sample:
        numbers = draw.random()
        example = self._example(numbers, self._example_size)
        sample = self._chains(numbers, LETTERS, size)
        return Sample(
            f"{example}\n\n{sample.text}", sample.answer_prefix, sample.answers, sample.evidence
        )

    @cached_property
    def _example_size(self) -> int:
        size = self.num_hops + 1
        while self.tokens(self._example(random.Random(0), size + 1)) <= EXAMPLE_TOKENS:
            size += 1
        return size

    def _example(self, numbers: random.Random, size: int) -> str:
        sample = self._chains(numbers, EXAMPLE_LETTERS, size)
        return f"{sample.text}{sample.answer_prefix} {' '.join(sample.answers)}"

    def _chains(self, numbers: random.Random, letters: int, size: int) -> Sample:
        links = self.num_hops + 1
        names = _names(numbers, letters, self.num_chains * links)
        values = [numbers.randrange(10000, 99999) for _ in range(self.num_chains)]
        lines = [benchmark("ruler")["noise"]] * size
        chains = []
        for start, value in zip(range(0, len(names), links), values, strict=True):
            chain = names[start : start + links]
            first = f"VAR {chain[0]} = {value}"
            # The space at the end is RULER's.
            rest = [f"VAR {b} = VAR {a} " for a, b in pairwise(chain)]
            chains.append([first, *rest])
            lines = insert_lines(lines, chains[-1], numbers)
        texts = benchmark("ruler")["templates"]["variable_tracking"]
        known = {"query": str(values[0]), "num_v": links}
        return Sample(
            texts["template"].format(context="\n".join(lines), **known),
            texts["answer_prefix"].format(**known),
            tuple(names[:links]),
            tuple(chains[0]),
        )


def _names(numbers: random.Random, letters: int, count: int) -> list[str]:
    names: dict[str, None] = {}
    while len(names) < count:
        names["".join(numbers.choices(string.ascii_uppercase, k=letters))] = None
    return list(names)
