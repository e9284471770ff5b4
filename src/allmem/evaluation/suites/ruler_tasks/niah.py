"""Needles in a haystack: keys with magic values among essays, noise or other needles, and a
question for the values of some keys (RULER's ``niah.py``)."""

from __future__ import annotations

import random
import uuid
from dataclasses import dataclass

from allmem.evaluation.benchmarks import benchmark
from allmem.evaluation.suites.ruler_tasks.haystacks import Haystack
from allmem.evaluation.suites.ruler_tasks.sample import Draw, Generator, Sample

__all__ = ["Needles"]

DIGITS = 7
SINGULAR = (("Some", "A"), ("are all", "is"), ("are", "is"), ("answers", "answer"))
"""What the template becomes where one value is asked for, in this order."""


@dataclass(frozen=True)
class Needles(Generator):
    """Parameters have the names that they have in RULER's ``synthetic.yaml``; kinds of keys and
    values are ``words``, ``numbers`` and ``uuids``."""

    haystack: Haystack
    type_needle_k: str
    type_needle_v: str
    num_needle_k: int
    num_needle_v: int
    num_needle_q: int

    def smallest(self, draw: Draw) -> int:
        return max(self.num_needle_k, self.num_needle_q) * self.num_needle_v

    def make(self, draw: Draw, size: int) -> Sample:
        numbers = draw.random()
        fresh = _Fresh(numbers)
        values: dict[str, list[str]] = {}
        for _ in range(max(self.num_needle_k, self.num_needle_q)):
            key = fresh.draw(self.type_needle_k)
            values[key] = [fresh.draw(self.type_needle_v) for _ in range(self.num_needle_v)]
        asked = numbers.sample(list(values), self.num_needle_q)
        answers = {value: self._needle(key, value) for key in asked for value in values[key]}
        needles = [self._needle(key, value) for key in values for value in values[key]]
        # RULER takes one permutation for all samples of a run; here each has its own.
        numbers.shuffle(needles)

        def distractor() -> str:
            return self._needle(fresh.draw(self.type_needle_k), fresh.draw(self.type_needle_v))

        texts = benchmark("ruler")["templates"]["niah"]
        template, prefix, kind = texts["template"], texts["answer_prefix"], self.type_needle_v
        if len(answers) == 1:
            kind = kind.removesuffix("s")
            for plural, singular in SINGULAR:
                template = template.replace(plural, singular)
                prefix = prefix.replace(plural, singular)
        query = ", ".join(asked[:-1]) + ", and " + asked[-1] if len(asked) > 1 else asked[0]
        context = self.haystack.hide(needles, size, numbers, distractor)
        return Sample(
            template.format(type_needle_v=kind, context=context, query=query),
            prefix.format(type_needle_v=kind, query=query),
            tuple(answers),
            tuple(answers.values()),
            self.haystack.material,
        )

    def _needle(self, key: str, value: str) -> str:
        text = benchmark("ruler")["needle"]
        return text.format(type_needle_v=self.type_needle_v, key=key, value=value)


class _Fresh:
    """Keys and values, none of them twice in a sample, so that a question has one answer."""

    def __init__(self, numbers: random.Random) -> None:
        self.numbers = numbers
        self.drawn: set[str] = set()

    def draw(self, kind: str) -> str:
        while (text := self._any(kind)) in self.drawn:
            pass
        self.drawn.add(text)
        return text

    def _any(self, kind: str) -> str:
        if kind == "numbers":
            return str(self.numbers.randint(10 ** (DIGITS - 1), 10**DIGITS - 1))
        if kind == "uuids":
            return str(uuid.UUID(int=self.numbers.getrandbits(128), version=4))
        words = benchmark("ruler")
        return f"{self.numbers.choice(words['adjectives'])}-{self.numbers.choice(words['nouns'])}"
