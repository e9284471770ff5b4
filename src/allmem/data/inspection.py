"""What a data folder holds, in a form that people can look at: plain values, no terminal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from allmem.data.shards import Index, read_shard
from allmem.errors import AllMemError

__all__ = ["ClassSummary", "Stretch", "sample_notes", "sample_stretches", "summarise"]

SHOWN = 400
"""Characters of a long text that are shown at its beginning and at its end."""


@dataclass(frozen=True)
class ClassSummary:
    """One length class."""

    name: str
    shards: int
    rows: int
    samples: int
    tokens: int
    response_tokens: int
    filled: float
    """Share of the packed rows that holds tokens."""


@dataclass(frozen=True)
class Stretch:
    """Text that is learned or not."""

    text: str
    learned: bool


def summarise(index: Index) -> Iterator[ClassSummary]:
    """The classes of an index."""
    for name in index.classes:
        shards = index.of_class(name)
        keys = ("rows", "samples", "tokens", "response_tokens")
        sums = {key: sum(shard[key] for shard in shards) for key in keys}
        room = sums["rows"] * index.config["lengths"][name]
        yield ClassSummary(name, len(shards), **sums, filled=sums["tokens"] / room)


def _locate(folder: Path, index: Index, number: int) -> tuple[Any, int]:
    """The shard that holds a sample, counted over all shards, and its place there."""
    left = number
    for entry in index.shards:
        if left < entry["samples"]:
            return read_shard(folder, entry), left
        left -= entry["samples"]
    total = sum(entry["samples"] for entry in index.shards)
    raise AllMemError(f"there is no sample {number}; {folder} holds samples 0 to {total - 1}")


def sample_notes(folder: Path, index: Index, number: int) -> dict[str, Any]:
    """Source, id, and whether it was cut."""
    shard, place = _locate(folder, index, number)
    return shard.samples[place]


def sample_stretches(
    folder: Path, index: Index, number: int, tokenizer: Any, whole: bool = False
) -> list[Stretch]:
    """The text of a sample, cut where learning begins and ends.

    Args:
        whole: show long stretches in full, not only their ends.

    Raises:
        AllMemError: if there is no such sample, or its shard is damaged.
    """
    shard, place = _locate(folder, index, number)
    begin, end = shard.document_starts[place : place + 2].tolist()
    ids, response = shard.input_ids[begin:end], shard.response[begin:end]
    borders = ((response[1:] != response[:-1]).nonzero()[:, 0] + 1).tolist()
    stretches = []
    for a, b in zip([0, *borders], [*borders, len(ids)], strict=True):
        text = tokenizer.decode(ids[a:b].tolist(), clean_up_tokenization_spaces=False)
        if not whole and len(text) > 3 * SHOWN:
            left = len(text) - 2 * SHOWN
            text = f"{text[:SHOWN]}\n … {left:,} characters …\n{text[-SHOWN:]}"
        stretches.append(Stretch(text, bool(response[a])))
    return stretches
