"""Facts planted in books: one among others, several about one name, one that changes.

Sentences are put between the sentences of an excerpt. The answer is the value itself, so that what
is learned is to remember, not to phrase.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from allmem.data.builders.material import SENTENCE_END, BuilderBase, Material, Measured
from allmem.data.builders.phrases import ALL, Subject, draw_names, draw_subject, draw_values
from allmem.data.conversation import Conversation
from allmem.errors import AllMemError

__all__ = ["Facts", "Needles", "Updates"]

STRUCK = "…"


@dataclass
class _Planted(BuilderBase):
    """Puts sentences into an excerpt."""

    count: int = 1
    """How many; what of depends on the builder."""
    most: ClassVar[int] = 200
    books: Measured = field(init=False, repr=False)

    def prepare(self, material: Material, label: str) -> None:
        super().prepare(material, label)
        if not 1 <= self.count <= self.most:
            raise AllMemError(
                f"builder {self.kind}: count = {self.count} must lie between 1 and {self.most}"
            )
        self.books = Measured(material, self.text, f"builder {self.kind}")

    def plant(
        self,
        n: int,
        rng: random.Random,
        sentences: Sequence[str],
        asked: Sequence[int],
        qa: tuple[str, str],
        values: Sequence[str],
    ) -> Conversation:
        """A document with all sentences in it, in this order; those that are asked for as far from
        the end as ``min_distance`` demands.

        Args:
            asked: numbers of the sentences that the answer needs.
            values: struck from the excerpt, so that they stand nowhere else.
        """
        question, answer = qa
        between = " " if self.language == "en" else ""
        planted = [f"{sentence}{between}" for sentence in sentences]
        room = self.room(rng, question, answer)
        room -= sum(self.material.count(f"{between}{sentence}") for sentence in planted)
        if room < 50:
            raise AllMemError(
                f"builder {self.kind}: {len(sentences)} sentences leave no room for text in a "
                "sample; raise tokens or lower count"
            )
        excerpt = self.books.excerpt(rng, room)
        for value in values:
            excerpt = excerpt.replace(value, STRUCK)
        borders = [0, *(m.end() for m in SENTENCE_END.finditer(excerpt))]
        wishes = sorted(rng.uniform(*self.depth) * len(excerpt) for _ in sentences)
        bound = float(len(excerpt))
        while True:
            # What comes after the last sentence that is asked for may stand anywhere.
            bounds = [bound if i <= max(asked) else math.inf for i in range(len(planted))]
            document, evidence = self._insert(excerpt, borders, wishes, planted, bounds)
            wanted = [evidence[i] for i in asked]
            sample = self.finish(n, document, question, answer, wanted)
            missing = self.min_distance - sample.info["distance"]
            if missing <= 0:
                return sample
            per_token = len(document) / sample.info["document_tokens"]
            bound = min(bound, wishes[max(asked)]) - missing * per_token - 20
            if bound < 0:
                raise AllMemError(
                    f"builder {self.kind}: the text is too short for min_distance = "
                    f"{self.min_distance}; give longer text or a smaller distance"
                )

    @staticmethod
    def _insert(
        text: str,
        borders: list[int],
        wishes: list[float],
        sentences: list[str],
        bounds: list[float],
    ) -> tuple[str, list[tuple[int, int]]]:
        """The text with the sentences, and where they stand.

        A sentence goes to the border before the place that was wished for.

        Args:
            bounds: of each sentence: it stands before this place.
        """
        parts: list[str] = []
        evidence: list[tuple[int, int]] = []
        at, size = 0, 0
        for sentence, wish, bound in zip(sentences, wishes, bounds, strict=True):
            border = max(at, borders[bisect_right(borders, min(wish, bound)) - 1])
            parts += [text[at:border], sentence]
            size += border - at
            evidence.append((size, size + len(sentence.rstrip())))
            size += len(sentence)
            at = border
        return "".join([*parts, text[at:]]), evidence


@dataclass
class Facts(_Planted):
    """``count`` facts about as many people; one of them is asked for."""

    kind: ClassVar[str] = "facts"

    def sample(self, n: int) -> Conversation:
        rng = self.draw(n)
        names = draw_names(rng, self.language, self.count)
        facts: list[tuple[Subject, str, str]] = []
        for name in names:
            subject = draw_subject(rng, self.language)
            value = draw_values(rng, self.language, subject.values, 1)[0]
            # No two people share a value: the answer stands in one place only.
            while any(value == other for _, _, other in facts):
                subject = draw_subject(rng, self.language)
                value = draw_values(rng, self.language, subject.values, 1)[0]
            facts.append((subject, name, value))
        asked = rng.randrange(self.count)
        subject, name, value = facts[asked]
        sentences = [s.states.format(name=name, value=value) for s, name, value in facts]
        qa = (subject.asks.format(name=name), value)
        return self.plant(n, rng, sentences, [asked], qa, [value])


@dataclass
class Needles(_Planted):
    """``count`` values of one thing; all of them are asked for, in their order."""

    count: int = 4
    kind: ClassVar[str] = "needles"
    most: ClassVar[int] = 10

    def sample(self, n: int) -> Conversation:
        rng = self.draw(n)
        subject = draw_subject(rng, self.language)
        name = draw_names(rng, self.language, 1)[0]
        values = draw_values(rng, self.language, subject.values, self.count)
        sentences = [subject.states.format(name=name, value=value) for value in values]
        question = subject.asks_all.format(name=name)
        answer = ALL[self.language].join(values)
        return self.plant(n, rng, sentences, range(self.count), (question, answer), values)


@dataclass
class Updates(_Planted):
    """A value that is changed ``count`` times; the last one is asked for."""

    count: int = 3
    kind: ClassVar[str] = "updates"
    most: ClassVar[int] = 9

    def sample(self, n: int) -> Conversation:
        rng = self.draw(n)
        subject = draw_subject(rng, self.language)
        name = draw_names(rng, self.language, 1)[0]
        values = draw_values(rng, self.language, subject.values, self.count + 1)
        sentences = [subject.states.format(name=name, value=values[0])]
        sentences += [subject.changes.format(name=name, value=value) for value in values[1:]]
        question = subject.asks_latest.format(name=name)
        return self.plant(n, rng, sentences, [self.count], (question, values[-1]), values)
