"""Texts in which needles are hidden: essays or a novel, cut into sentences, or lines of noise.

RULER hides them in Paul Graham's essays, which their author has not released: they are read from
the user's folder, and a novel that ships with allmem takes their place if they are not there.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from random import Random

from allmem.documents import READ, load_book
from allmem.errors import AllMemError
from allmem.evaluation.benchmarks import benchmark
from allmem.evaluation.suites.ruler_tasks.user_files import find
from allmem.evaluation.user_files import read_json

__all__ = ["Essay", "Haystack", "Lines", "insert_lines", "open_haystack", "split_sentences"]

ESSAYS = "PaulGrahamEssays.json"
REMEDY = "make it again, or remove it to use a novel"
DEPTHS = tuple(round(100 * i / 39) for i in range(40))
"""Percent of the sentences before a needle (RULER's ``niah.py``)."""
END = re.compile(r"[.!?][\"'”’)\]]*\s+(?=[\"'“‘(\[]*[A-Z0-9])")
ABBREVIATION = re.compile(r"(?:^|[\s(\"'“‘])(?:[A-Z]|Mr|Mrs|Ms|Dr|St|Prof|Jr|Sr|vs|cf|No)\.$")

Needles = Sequence[str]
Distractor = Callable[[], str]


class Haystack(ABC):
    """A text of any size in which needles can be hidden."""

    material: str = "generated"

    @abstractmethod
    def hide(self, needles: Needles, size: int, numbers: Random, distractor: Distractor) -> str:
        """A text of a size with needles in it, in the order given.

        Args:
            distractor: another needle, that is not asked for.
        """


class Lines(Haystack):
    """Lines of noise, or of needles that are not asked for; its size is the number of lines."""

    def __init__(self, distractors: bool) -> None:
        self.distractors = distractors

    def hide(self, needles: Needles, size: int, numbers: Random, distractor: Distractor) -> str:
        noise = benchmark("ruler")["noise"]
        lines = [distractor() if self.distractors else noise for _ in range(size)]
        return "\n".join(insert_lines(lines, needles, numbers))


class Essay(Haystack):
    """Running text, repeated where it ends; its size is the number of words."""

    def __init__(self, words: Sequence[str], material: str) -> None:
        self.words = list(words)
        self.material = material

    def hide(self, needles: Needles, size: int, numbers: Random, distractor: Distractor) -> str:
        rounds = -(-size // len(self.words))
        sentences = split_sentences(" ".join((self.words * rounds)[:size]))
        depths = numbers.sample(DEPTHS, len(needles))
        places = sorted(int(len(sentences) * (depth / 100)) for depth in depths)
        pieces: list[str] = []
        for needle, start, stop in zip(needles, [0, *places[:-1]], places, strict=True):
            pieces += [" ".join(sentences[start:stop]), needle]
        return " ".join([*pieces, " ".join(sentences[places[-1] :])])


def open_haystack(kind: str, data: Path | None) -> Haystack:
    """The haystack that RULER calls ``noise``, ``needle`` or ``essay``.

    Raises:
        AllMemError: if the user's file of essays cannot be read.
    """
    if kind != "essay":
        return Lines(distractors=kind == "needle")
    path = find(data, ESSAYS)
    if path is None:
        return _novel()
    words = read_json(
        path,
        lambda told: told["text"].split(),
        "what RULER's download_paulgraham_essay.py writes, an object with all essays as its 'text'",
        REMEDY,
    )
    if not words:
        raise AllMemError(f"{path} holds no words; {REMEDY}")
    return Essay(words, ESSAYS)


@cache
def _novel() -> Essay:
    return Essay(load_book(READ).split(), f"novel {READ}")


def split_sentences(text: str) -> list[str]:
    """Sentences of English text, by their punctuation; joined by spaces they give it again.

    RULER takes NLTK's Punkt, whose model is a download; the two may differ at abbreviations, and so
    in where a needle can stand, not in the text.
    """
    sentences, start = [], 0
    for end in END.finditer(text):
        sentence = text[start : end.end()].rstrip()
        if not ABBREVIATION.search(sentence):
            sentences.append(sentence)
            start = end.end()
    return [*sentences, text[start:]]


def insert_lines(lines: list[str], new: Sequence[str], numbers: Random) -> list[str]:
    """Lines with others before some of them, in the order given."""
    places = sorted(numbers.sample(range(len(lines)), len(new)))
    result = list(lines)
    for shift, (place, line) in enumerate(zip(places, new, strict=True)):
        result.insert(place + shift, line)
    return result
