"""Books, for probes that read them and for those that hide facts in prose: the user's, in the form
of PG-19 (one text a file, or rows with ``text``), or else the novel that ships with allmem.

It knows tokenizers, not models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from allmem.data.builders.material import CHARACTERS_PER_TOKEN
from allmem.documents import LEARNED, READ, load_book
from allmem.evaluation.bad_rows import bad_row
from allmem.evaluation.task import Setting
from allmem.evaluation.user_files import data_folder, user_rows
from allmem.prompts import plain_ids, start_ids

__all__ = ["Book", "Stretch", "find_books", "other_stretches", "read_books", "stretches"]

NAME, LANGUAGE = "books", "en"
"""Of folder or file in the user's data, and the language of one whose name tells none."""
STRETCHES = 4
"""Into so many texts the novel that ships is cut at most, so that there is something to resample.
Books of a folder are read once each, from their beginnings."""
TYPICAL = 5
"""Characters per token of English prose, so that stretches of the novel do not overlap."""


class Book(NamedTuple):
    """A whole text."""

    name: str
    """None has another's."""
    text: str


@dataclass(frozen=True)
class Stretch:
    """A text to be read, at least as long as it is wanted if the book has as much."""

    id: str
    book: str
    """Which book it is from."""
    text: str

    def ids(self, tokenizer: Any, tokens: int) -> list[int]:
        """Its first ``tokens`` tokens, with what the tokenizer puts before every text."""
        return [*start_ids(tokenizer), *plain_ids(tokenizer, self.text)][:tokens]


def stretches(setting: Setting, tokens: int) -> Iterator[Stretch]:
    """The texts to read ``tokens`` tokens of, in an order that is always the same; one book at a
    time is in memory.

    Raises:
        AllMemError: on a row without a text, unless bad rows are to be skipped.
    """
    own = find_books(setting, LANGUAGE)
    if own is None:
        yield from _cut(READ, load_book(READ), tokens)
        return
    for name, text in read_books(own, setting):
        yield Stretch(name, name, text[: tokens * CHARACTERS_PER_TOKEN])


def other_stretches(tokens: int) -> Iterator[Stretch]:
    """Texts from a book that is never among ``stretches``. Memories may have been distilled on it,
    so it is only good for being something else."""
    return _cut(LEARNED, load_book(LEARNED), tokens)


def find_books(setting: Setting, language: str) -> Path | None:
    """The user's books in a language: the folder ``books_en`` (or ``books``, for English), else the
    first file ``books_en.*``."""
    if setting.data is None:
        return None
    data = data_folder(setting.data)
    own = f"{NAME}_{language}"
    folders = [data / own, *([data / NAME] if language == LANGUAGE else [])]
    found = [path for path in folders if path.is_dir()] or sorted(data.glob(f"{own}.*"))
    return found[0] if found else None


def read_books(path: Path, setting: Setting) -> Iterator[Book]:
    """The books of a file or folder, one at a time.

    Raises:
        AllMemError: on a row without a text, unless bad rows are to be skipped.
    """
    known: Counter[str] = Counter()
    for number, row in enumerate(user_rows(path, setting), 1):
        text = row.values.get("text")
        if not isinstance(text, str) or not text.strip():
            bad_row(setting, f"{row.place} has no text in 'text'")
            continue
        name = str(row.values.get("id", number))
        known[name] += 1
        # Two files may number their rows alike.
        yield Book(name if known[name] == 1 else f"{name} ({known[name]})", text)


def _cut(name: str, text: str, tokens: int) -> Iterator[Stretch]:
    """Stretches of a book that begin at paragraphs, as many as it has of such a length."""
    count = max(1, min(STRETCHES, len(text) // (tokens * TYPICAL)))
    most = tokens * CHARACTERS_PER_TOKEN
    for i in range(count):
        begin = 0 if i == 0 else text.index("\n\n", i * len(text) // count) + 2
        yield Stretch(f"{name}-{i + 1}of{count}", name, text[begin : begin + most])
