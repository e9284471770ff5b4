"""The two books that ship with allmem, and the questions about one of them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from importlib import resources

__all__ = ["Question", "is_right", "load_questions"]

_UNSAID = {"a", "an", "the", "some", "of"}
"""Words that an answer may leave out."""


@dataclass(frozen=True)
class Question:
    """A question about the book that is read."""

    question: str
    answer: str
    offset: int
    """Of the passage that answers it, in characters."""

    def passage(self, book: str, length: int) -> str:
        """Whole words of the book around the answer, about so many characters."""
        begin = max(0, self.offset - length // 2)
        words = book[begin : begin + length]
        return words.partition(" ")[2].rpartition(" ")[0] if begin else words.rpartition(" ")[0]


def load_questions() -> list[Question]:
    """The fixed questions about ``READ``."""
    file = resources.files("allmem") / "resources" / "questions.json"
    listed = json.loads(file.read_text())["questions"]
    return [Question(q["question"], q["answer"], q["offset"]) for q in listed]


def is_right(answer: str, right: str) -> bool:
    """Whether an answer says all words of the right one, in any case and order, articles aside."""
    said = set(re.findall(r"[a-z0-9]+", answer.lower()))
    wanted = set(re.findall(r"[a-z0-9]+", right.lower())) - _UNSAID
    return wanted <= said
