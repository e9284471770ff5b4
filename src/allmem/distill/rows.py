"""Where training rows come from: plain text, a data folder, a list; and the batches made of them.

Row number ``i`` of a source is a function of its seed and ``i`` alone, and step ``s`` of a run
reads rows ``s n`` to ``(s + 1) n - 1``, however many processes share them. So a run that was cut
off, or that goes on with another number of devices, reads the same text.

Letters: T tokens of a row, B rows of a batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from allmem.data.labels import IGNORED
from allmem.data.made_rows import RowWriter
from allmem.data.sequences import Sequences, spread_sequences
from allmem.data.stream import RowStream, collate
from allmem.distill.config import DistillConfig
from allmem.distill.sizes import Sizes
from allmem.models.modeling import AllMemForCausalLM

__all__ = [
    "Batches",
    "FolderRows",
    "ListRows",
    "MadeRows",
    "Row",
    "Rows",
    "TextRows",
    "absorb_padding",
    "counted",
    "digest",
    "held_out_rows",
    "own_sizes",
    "plain_row",
]

MEASURED_ROWS = 64
"""Made rows whose lengths, and whose text, stand for all."""

Row = dict[str, Tensor]
"""``input_ids``, ``labels`` (the token where it is learned, else ``IGNORED``; not shifted) and
``position_ids`` (from 0 in each document), each [T] int64; perhaps a teacher's answers beside."""


class Rows(Protocol):
    """A source of rows without an end."""

    longest: int
    """Tokens of its longest row."""
    mean: float
    """Tokens of a row on average."""

    def read(self, first: int, rank: int = 0, world: int = 1) -> Iterator[Row]:
        """Rows number ``first + rank``, ``first + rank + world`` and so on."""
        ...

    def fingerprint(self) -> str:
        """A short hash of everything that decides which row is which."""
        ...


def digest(rows: Iterable[Row]) -> str:
    """A short hash of what rows say and what of it is learned."""
    found = hashlib.sha256()
    for row in rows:
        found.update(row["input_ids"].numpy().tobytes() + row["labels"].numpy().tobytes())
    return found.hexdigest()[:16]


def plain_row(ids: Tensor) -> Row:
    """A row of one document in which every token is learned; ids [T]."""
    return {"input_ids": ids, "labels": ids, "position_ids": torch.arange(len(ids))}


def held_out_rows(document: Tensor, length: int, count: int) -> list[Row]:
    """Up to ``count`` rows of ``length`` tokens that lie evenly over a document [tokens].

    Raises:
        AllMemError: if the document is shorter than one row.
    """
    return [plain_row(ids) for ids in spread_sequences(document, length, count)]


class TextRows:
    """Plain text, cut anew in every epoch; every token is learned."""

    def __init__(self, sequences: Sequences) -> None:
        self.sequences = sequences
        self.longest = sequences.length
        self.mean = float(sequences.length)

    def read(self, first: int, rank: int = 0, world: int = 1) -> Iterator[Row]:
        number = first + rank
        while True:
            yield plain_row(self.sequences[number])
            number += world

    def fingerprint(self) -> str:
        return self.sequences.fingerprint()


class ListRows:
    """Rows that are in memory, in a new order in every epoch.

    Args:
        rows: at least one.
        seed: decides the order.
    """

    def __init__(self, rows: Sequence[Row], seed: int = 0, name: str = "") -> None:
        lengths = [len(row["input_ids"]) for row in rows]
        self.rows, self.seed, self.name = rows, seed, name
        self.longest = max(lengths)
        self.mean = sum(lengths) / len(lengths)

    def read(self, first: int, rank: int = 0, world: int = 1) -> Iterator[Row]:
        number, order, ordered = first + rank, torch.empty(0), -1
        while True:
            epoch, place = divmod(number, len(self.rows))
            if epoch != ordered:
                generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
                order, ordered = torch.randperm(len(self.rows), generator=generator), epoch
            yield self.rows[int(order[place])]
            number += world

    def fingerprint(self) -> str:
        return f"{self.name} {len(self.rows)} rows, {digest(self.rows)}, seed {self.seed}"


class FolderRows:
    """A folder that ``allmem data build`` made.

    Args:
        mix, seed, held_back: see ``RowStream``.

    Raises:
        AllMemError: as ``RowStream``.
    """

    def __init__(
        self,
        folder: str | Path,
        mix: dict[str, float] | None = None,
        seed: int = 0,
        held_back: int = 0,
    ) -> None:
        self.arguments: dict[str, Any] = {
            "folder": folder,
            "mix": mix,
            "seed": seed,
            "held_back": held_back,
        }
        stream = RowStream(**self.arguments)
        self.longest, self.mean = stream.longest, stream.mean
        self.held_back = stream.held_back_rows()
        self.identity = f"{stream.fingerprint} mix {stream.mix} seed {seed} less {held_back}"

    def read(self, first: int, rank: int = 0, world: int = 1) -> Iterator[Row]:
        stream = RowStream(**self.arguments, rank=rank, world=world)
        stream.skip(first)
        return iter(stream)

    def fingerprint(self) -> str:
        return self.identity


class MadeRows:
    """Rows that are made as they are read."""

    def __init__(self, writer: RowWriter) -> None:
        self.writer = writer
        self.longest = writer.longest
        rows = [writer.row(i) for i in range(MEASURED_ROWS)]
        self.mean = sum(len(row["input_ids"]) for row in rows) / len(rows)
        # The prose in them is a file's, which may be another one tomorrow.
        self.digest = digest(rows)

    def read(self, first: int, rank: int = 0, world: int = 1) -> Iterator[Row]:
        number = first + rank
        while True:
            yield self.writer.row(number)
            number += world

    def fingerprint(self) -> str:
        return f"{self.writer.identity}, {self.digest}"


def absorb_padding(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A batch in which a last document without a label that counts goes on from the one before.

    No earlier token sees it, so nothing changes but the number of documents, each of which costs a
    row of its own wherever documents are told apart.
    """
    positions = batch["position_ids"].clone()
    for row, labels in zip(positions, batch["labels"], strict=True):
        start = int((row == 0).nonzero()[-1])
        if start and not bool((labels[start:] != IGNORED).any()):
            row[start:] += row[start - 1] + 1
    return {**batch, "position_ids": positions}


def counted(labels: Tensor, positions: Tensor, window: int) -> Tensor:
    """``labels`` [..., T] without those of each document's first tokens: a token counts if it is
    predicted from position ``window`` or later (0 for all that are predicted at all)."""
    return torch.where(positions > window, labels, IGNORED)


@dataclass
class Batches(IterableDataset):  # type: ignore[type-arg]
    """The micro-batches of one process, from the first of step ``first_step`` on.

    Each holds what ``collate`` gives, with labels only where the loss counts, and beside it
    ``sizes``: what the step reads with.

    Args:
        own: the model's sizes, where none are drawn.
        before: steps of earlier stages of the run, whose rows and draws this one follows.
    """

    rows: Rows
    config: DistillConfig
    own: Sizes
    first_step: int = 0
    before: int = 0
    rank: int = 0
    world: int = 1

    def __iter__(self) -> Iterator[dict[str, Any]]:
        config = self.config
        step = self.first_step
        first = (self.before + step) * config.rows_per_step(self.world)
        stream = self.rows.read(first, self.rank, self.world)
        while True:
            for _ in range(config.accumulate):
                yield self.batch(list(islice(stream, config.batch)), step)
            step += 1

    def batch(self, rows: list[Row], step: int) -> dict[str, Any]:
        """Rows as a batch of a step."""
        sizes = self.sizes(step)
        batch: dict[str, Any] = collate(rows)
        window = sizes.window if self.config.positions == "beyond" else 0
        batch["labels"] = counted(batch["labels"], batch["position_ids"], window)
        batch["sizes"] = sizes
        return batch

    def sizes(self, step: int) -> Sizes:
        """What a step reads with."""
        config = self.config
        if config.random is None:
            return self.own
        return config.random.draw(self.before + step, config.seed, self.own.chunk is not None)


def own_sizes(model: AllMemForCausalLM) -> Sizes:
    """The sizes of a model's configuration."""
    config = model.config
    return Sizes(config.window, config.sinks, config.chunk)
