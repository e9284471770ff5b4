"""Long texts for probes that read a text instead of asking about it: a folder of books, in the form
of PG-19 (one text a file, or rows with ``text``), or else the novel that ships with allmem.

It knows tokenizers, not models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from allmem.data.builders.material import CHARACTERS_PER_TOKEN
from allmem.data.config import SourceConfig
from allmem.data.readers import BadRow, read_rows
from allmem.documents import LEARNED, READ, load_book
from allmem.evaluation.bad_rows import bad_row
from allmem.evaluation.task import Setting
from allmem.prompts import plain_ids, start_ids

__all__ = ["FOLDER", "Stretch", "encode", "other_stretches", "stretches"]

FOLDER = "books"
"""Of the data folder: .txt, .jsonl and so on, also packed."""
STRETCHES = 4
"""Into so many texts the novel that ships is cut at most, so that there is something to resample.
Books of a folder are read once each, from their beginnings."""
TYPICAL = 5
"""Characters per token of English prose, so that stretches of the novel do not overlap."""


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
    most = tokens * CHARACTERS_PER_TOKEN
    folder = _folder(setting)
    if folder is None:
        yield from _cut(READ, load_book(READ), tokens)
        return
    known: Counter[str] = Counter()
    for number, row in enumerate(read_rows(SourceConfig(path=str(folder))), 1):
        if isinstance(row, BadRow):
            bad_row(setting, row.reason)
            continue
        text = row.values.get("text")
        if not isinstance(text, str) or not text.strip():
            bad_row(setting, f"{row.name}, row {row.after.rows} has no text in 'text'")
            continue
        name = str(row.values.get("id", number))
        known[name] += 1
        # Two files may number their rows alike.
        unique = name if known[name] == 1 else f"{name} ({known[name]})"
        yield Stretch(unique, unique, text[:most])


def other_stretches(tokens: int) -> Iterator[Stretch]:
    """Texts from a book that is never among ``stretches``. Memories may have been distilled on it,
    so it is only good for being something else."""
    return _cut(LEARNED, load_book(LEARNED), tokens)


def encode(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """The tokens of a text that somebody wrote, and of each its first character and its end."""
    encoded = tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
    )
    return encoded["input_ids"], [(a, b) for a, b in encoded["offset_mapping"]]


def _folder(setting: Setting) -> Path | None:
    if setting.data is None or not (setting.data / FOLDER).is_dir():
        return None
    return setting.data / FOLDER


def _cut(name: str, text: str, tokens: int) -> Iterator[Stretch]:
    """Stretches of a book that begin at paragraphs, as many as it has of such a length."""
    count = max(1, min(STRETCHES, len(text) // (tokens * TYPICAL)))
    for i in range(count):
        begin = 0 if i == 0 else text.index("\n\n", i * len(text) // count) + 2
        most = tokens * CHARACTERS_PER_TOKEN
        yield Stretch(f"{name}-{i + 1}of{count}", name, text[begin : begin + most])
