"""A question whose answer stands in one passage among many that look like it.

The other passages are what BM25 (bm25s) finds for the question, hard ones first, then any; passages
that hold the answer are left out of them. Chinese is indexed by characters and pairs of characters.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from typing import Any, ClassVar

from allmem.data.builders.material import BuilderBase, Material
from allmem.data.conversation import Conversation
from allmem.data.readers import needed
from allmem.errors import AllMemError

__all__ = ["Haystack", "terms"]

TITLES = {"en": "Passage {n}\n{text}\n\n", "zh": "段落{n}\n{text}\n\n"}
QUESTIONS = {
    "en": "Answer the question from the passages above.\nQuestion: {question}",
    "zh": "请根据以上段落回答问题。\n问题：{question}",
}
TERM = re.compile(r"[\u3400-\u9fff]+|[^\W_]+")


def terms(text: str) -> list[str]:
    """The terms by which a text is found: words, and for Chinese characters and pairs of them."""
    found = []
    for run in TERM.findall(text.lower()):
        if "\u3400" <= run[0] <= "\u9fff":
            found += list(run)
            found += [run[i : i + 2] for i in range(len(run) - 1)]
        else:
            found.append(run)
    return found


@dataclass
class Haystack(BuilderBase):
    """Samples from rows with a question, its passage and its answer."""

    questions: dict[str, Any] = field(default_factory=dict)
    """Source of the rows, in the form ``context_qa``."""
    passages: tuple[dict[str, Any], ...] = ()
    """Sources of more passages to hide among; their documents are used."""
    hard: int = 20
    """Passages that the question finds and that are used first."""
    max_passage: int = 512
    """Tokens; questions about longer passages are left out, longer distractors shortened."""
    kind: ClassVar[str] = "haystack"

    def prepare(self, material: Material, label: str) -> None:
        super().prepare(material, label)
        if not self.questions:
            raise AllMemError("builder haystack: questions must be given, as a source")
        if self.text:
            raise AllMemError("builder haystack: text is of no use; give passages")
        self.rows: list[tuple[str, str, int]] = []
        """question, answer, number of its passage"""
        numbers: dict[str, int] = {}
        for row in material.conversations(self.questions, "builder haystack, questions"):
            if row.document and len(row.messages) == 2:
                if material.count(row.document) > self.max_passage:
                    continue
                number = numbers.setdefault(row.document, len(numbers))
                self.rows.append((row.messages[0].content, row.messages[1].content, number))
        if not self.rows:
            raise AllMemError(
                "builder haystack: no row of questions has a question, an answer and a passage of "
                f"at most {self.max_passage} tokens"
            )
        for i, options in enumerate(self.passages, 1):
            for row in material.conversations(options, f"builder haystack, passages {i}"):
                body = row.document or "\n\n".join(row.texts())
                numbers.setdefault(material.head(body, self.max_passage).strip(), len(numbers))
        self.pool = list(numbers)
        self.sizes = [material.count(TITLES[self.language].format(n=99, text=t)) for t in self.pool]
        self.index = needed("bm25s", "bm25s").BM25()
        self.index.index([terms(text) for text in self.pool], show_progress=False)

    def sample(self, n: int) -> Conversation:
        rng = self.draw(n)
        # Every row once before any comes again.
        order = random.Random(f"{self.material.seed} {self.label} {n // len(self.rows)}")
        question, answer, gold = self.rows[
            order.sample(range(len(self.rows)), len(self.rows))[n % len(self.rows)]
        ]
        asked = QUESTIONS[self.language].format(question=question)
        whole = self.room(rng, asked, answer)
        room = whole - self.sizes[gold]
        chosen = []
        for other in self._others(rng, question, answer, gold):
            if self.sizes[other] > room:
                break
            room -= self.sizes[other]
            chosen.append(other)
        rng.shuffle(chosen)
        wish = rng.random()
        while True:
            place = self._place(wish, [self.sizes[i] for i in chosen])
            document, span = self._assemble([*chosen[:place], gold, *chosen[place:]], gold)
            # Passages that stand together may have more tokens than each by itself.
            excess = self.material.count(document) - whole
            if excess <= 0 or not chosen:
                return self.finish(n, document, asked, answer, [span])
            while excess > 0 and chosen:
                excess -= self.sizes[chosen.pop()]

    def _assemble(self, numbers: list[int], gold: int) -> tuple[str, tuple[int, int]]:
        """Passages as one document, and where the gold one stands in it."""
        document, span = "", (0, 0)
        for i, number in enumerate(numbers, 1):
            text = TITLES[self.language].format(n=i, text=self.pool[number])
            if number == gold:
                span = (len(document), len(document) + len(text.rstrip()))
            document += text
        return document.rstrip(), span

    def _others(self, rng: random.Random, question: str, answer: str, gold: int) -> list[int]:
        """Passages to hide among, the hard ones first."""
        k = min(self.hard, len(self.pool))
        found = []
        if k:
            hits, _ = self.index.retrieve([terms(question)], k=k, show_progress=False)
            found = [int(i) for i in hits[0]]
        rest = rng.sample(range(len(self.pool)), len(self.pool))
        held = answer.lower()
        return [
            i
            for i in dict.fromkeys([*found, *rest])
            if i != gold and held not in self.pool[i].lower()
        ]

    def _place(self, wish: float, sizes: list[int]) -> int:
        """How many passages stand before the gold one; ``wish`` from 0, the least, to 1."""
        total = sum(sizes)
        low, high = (d * total for d in self.depth)
        high = min(high, total - self.min_distance)
        if high < 0:
            raise AllMemError(
                f"builder haystack: there are passages of {total} tokens only, fewer than "
                f"min_distance = {self.min_distance}; give more passages"
            )
        low = min(low, high)
        before, at = 0, 0
        while at < len(sizes) and before + sizes[at] <= low + wish * (high - low):
            before += sizes[at]
            at += 1
        return at
