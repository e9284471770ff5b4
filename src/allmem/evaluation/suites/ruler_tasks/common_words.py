"""A numbered list in which ten words are common, after a short example with its answer (RULER's
``common_words_extraction.py``)."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from allmem.documents import LEARNED, READ, load_book
from allmem.errors import AllMemError
from allmem.evaluation.benchmarks import benchmark
from allmem.evaluation.suites.ruler_tasks.sample import Draw, Generator, Sample
from allmem.evaluation.suites.ruler_tasks.user_files import find
from allmem.evaluation.user_files import read_json

__all__ = ["CommonWords", "more_words", "words"]

SHORT = 4096
"""Tokens under which words are repeated less often, and the example is shorter."""
ENGLISH_WORDS = "english_words.json"


@dataclass(frozen=True)
class CommonWords(Generator):
    """Parameters have the names that they have in RULER's ``synthetic.yaml``; the size is the
    number of different words."""

    freq_cw: int
    freq_ucw: int
    num_cw: int
    data: Path | None

    def smallest(self, draw: Draw) -> int:
        return self.num_cw + 1

    def make(self, draw: Draw, size: int) -> Sample:
        numbers = draw.random()
        short = draw.length < SHORT
        known, material = self._words(size)
        example, told = self._list(numbers, known, *((20, 3, 1) if short else (40, 10, 3)))
        repeats = (6, 1) if short else (self.freq_cw, self.freq_ucw)
        context, answers = self._list(numbers, known, size, *repeats)
        texts = benchmark("ruler")["templates"]["common_words_extraction"]
        template, prefix = texts["template"], texts["answer_prefix"]
        return Sample(
            f"{template.format(context=example)}{prefix} {_numbered(told)}\n"
            f"{template.format(context=context)}",
            prefix,
            tuple(answers),
            material=material,
        )

    def _words(self, size: int) -> tuple[tuple[str, ...], str]:
        """Enough words to choose ``size`` of, and where they are from."""
        if size <= len(words()):
            return words(), "wonderwords"
        path = find(self.data, ENGLISH_WORDS)
        known = more_words(path)
        if size > len(known):
            raise AllMemError(
                f"ruler/cwe needs {size} different words at this length and there are "
                f"{len(known)}; put RULER's {ENGLISH_WORDS} into the folder ruler of the data "
                "folder, or ask for a shorter length"
            )
        return known, path.name if path else "wonderwords and words of two novels"

    def _list(
        self, numbers: random.Random, known: Sequence[str], size: int, common: int, uncommon: int
    ) -> tuple[str, list[str]]:
        drawn = numbers.sample(known, size)
        answers = drawn[: self.num_cw]
        repeated = answers * common + drawn[self.num_cw :] * uncommon
        numbers.shuffle(repeated)
        return _numbered(repeated), answers


def _numbered(items: list[str]) -> str:
    return " ".join(f"{i}. {item}" for i, item in enumerate(items, start=1))


@cache
def words() -> tuple[str, ...]:
    """The words of the package wonderwords, as RULER takes them."""
    lists = benchmark("ruler")
    return tuple(sorted({*lists["nouns"], *lists["adjectives"], *lists["verbs"]}))


@cache
def more_words(path: Path | None) -> tuple[str, ...]:
    """The many words that the longest lists need: RULER's file, or else those of wonderwords and of
    the novels that ship with allmem.

    Raises:
        AllMemError: if the file cannot be read.
    """
    if path is None:
        books = (load_book(name) for name in (LEARNED, READ))
        found = {word for book in books for word in re.findall(r"\b[a-z]{3,}\b", book)}
        return tuple(sorted({*words(), *found}))
    return read_json(
        path,
        lambda told: tuple(dict.fromkeys(told.values())),
        f"RULER's {ENGLISH_WORDS}, an object whose values are words",
        "its copy in the repository is a Git LFS pointer until `git lfs pull`",
    )
