"""Text that says nothing of what is asked: prose between the facts of a probe.

In this order: the user's own books; for English the novel that ships with allmem; for Chinese
made-up sentences, since none ships.

It knows tokenizers, not models.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from allmem.data.builders.material import SENTENCE_END
from allmem.documents import READ, load_book
from allmem.errors import AllMemError
from allmem.evaluation.probes.books import find_books, read_books
from allmem.evaluation.task import Setting
from allmem.prompts import plain_spans

__all__ = ["Filler", "Piece", "load_filler"]

MOST = 2_000_000
"""Characters of the user's text that are used: more than the longest prompt."""
WHO = ("老船夫", "卖花的姑娘", "茶馆掌柜", "守门的老人", "过路的商人", "村里的木匠", "一群孩子")
WHERE = ("在河边", "在城门外", "在槐树下", "在长街上", "在山脚下", "在渡口", "在石桥上")
WHAT = (
    "慢慢地走着，没有说话。",
    "坐了一个下午，看云来云去。",
    "听见远处的笛声，停下来站了一会儿。",
    "说起去年的大雪，都笑了起来。",
    "把行李放下，喝了一碗热茶。",
    "望着天色，说明天大概要下雨。",
    "遇见了一位旧相识，谈了很久才分手。",
    "收拾好东西，趁着天还没黑往回走。",
)


class Piece(NamedTuple):
    """A sentence with the space behind it."""

    text: str
    tokens: int


class Filler:
    """Prose, in measured sentences.

    Args:
        material: what it is, for the rows.
    """

    def __init__(self, tokenizer: Any, text: str, material: str) -> None:
        self.tokenizer, self.text, self.material = tokenizer, text, material
        self._known: dict[str, bool] = {}

    @cached_property
    def pieces(self) -> list[Piece]:
        """Every sentence."""
        borders = [0, *(m.end() for m in SENTENCE_END.finditer(self.text))]
        if borders[-1] < len(self.text):
            borders.append(len(self.text))
        sizes = [0] * len(borders)
        for begin, end in plain_spans(self.tokenizer, self.text)[1]:
            # A token may bring the space before its word along.
            sizes[bisect_right(borders, max(begin, end - 1)) - 1] += 1
        spans = zip(borders, borders[1:], sizes, strict=False)
        return [Piece(self.text[a:b], size) for a, b, size in spans]

    def holds(self, text: str) -> bool:
        """Whether a text stands in it, so that it cannot be hidden there."""
        if text not in self._known:
            self._known[text] = text in self.text
        return self._known[text]

    def excerpt(self, begin: int, tokens: int) -> list[Piece]:
        """About so many tokens from sentence ``begin`` on, the last sentence cut; after the end
        comes the beginning."""
        found: list[Piece] = []
        left = tokens
        while left > 0:
            piece = self.pieces[(begin + len(found)) % len(self.pieces)]
            if piece.tokens > left:
                piece = Piece(_cut(piece, left), left)
            found.append(piece)
            left -= piece.tokens
        return found


def load_filler(tokenizer: Any, language: str, setting: Setting) -> Filler:
    """The prose of a language.

    Raises:
        AllMemError: if the user's books are damaged or hold no text.
    """
    own = find_books(setting, language)
    if own is not None:
        return Filler(tokenizer, _beginning(own, setting), own.name)
    if language == "en":
        return Filler(tokenizer, load_book(READ), READ)
    return Filler(tokenizer, _made_up(), "made-up sentences")


def _beginning(path: Path, setting: Setting) -> str:
    """All texts of the user's books, one after another, up to ``MOST`` characters."""
    parts: list[str] = []
    size = 0
    for book in read_books(path, setting):
        parts.append(book.text[: MOST - size].strip())
        size += len(parts[-1])
        if size >= MOST:
            break
    if not size:
        raise AllMemError(f"{path} holds no text; put some into it, or remove it")
    return "\n\n".join(parts)


def _made_up() -> str:
    """Every sentence that the parts make, in an order that is always the same."""
    sentences = ["".join(parts) for parts in product(WHO, WHERE, WHAT)]
    random.Random(0).shuffle(sentences)
    return "".join(sentences)


def _cut(piece: Piece, tokens: int) -> str:
    """The beginning of a sentence, whole words if it has spaces."""
    begun = piece.text[: len(piece.text) * tokens // piece.tokens]
    return begun[: begun.rfind(" ") + 1] or begun
