"""Rows of a data folder in a shuffled order that only the seed decides, endless or for some epochs.

The order of a class in an epoch is a pure function of the seed: shards are shuffled, then rows
among a few neighbouring shards, so that a few shards at a time are in memory. Classes take turns by
an exact ratio. So a position is a handful of counts, and ``state_dict`` restores the stream to the
very next row.

Letters: T tokens of a row, B rows of a batch.
"""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from allmem.data.labels import IGNORED
from allmem.data.shards import Shard, read_index, read_shard
from allmem.errors import AllMemError, unknown_name

__all__ = ["RowStream", "collate"]


class RowStream:
    """Iterates over packed rows: dictionaries of ``input_ids``, ``labels`` and ``position_ids``,
    each [T] int64.

    ``labels`` hold the token itself where it is the assistant's to write, else ``IGNORED``; they
    are not shifted (as transformers expects them). ``position_ids`` restart at 0 with each
    document. Where a teacher was asked (``allmem data teach``), also ``teacher_ids`` and
    ``teacher_log_probs``; see ``Shard.answered``.

    Args:
        folder: made by ``allmem data build``.
        mix: class -> share of the rows, such as ``{"long": 1, "short": 4}``; default: every class
            in proportion to its rows, so that all end together.
        seed: decides the order.
        epochs: stop before any class is read once more than this; ``None`` for endless.
        neighbours: shards among which rows are shuffled, and that are in memory at a time.
        rank, world: of this process: it gets every ``world``-th row of the one order.
        held_back: how many rows to leave out, the last of each class in proportion to its share;
            ``held_back_rows`` reads them.

    Raises:
        AllMemError: if the folder is damaged or incomplete, or a class of ``mix`` is not in it.
    """

    def __init__(
        self,
        folder: str | Path,
        mix: Mapping[str, float] | None = None,
        seed: int = 0,
        epochs: int | None = None,
        neighbours: int = 4,
        rank: int = 0,
        world: int = 1,
        held_back: int = 0,
    ) -> None:
        self.folder = Path(folder)
        index = read_index(self.folder)
        if not index.done:
            command = "build" if index.teacher is None else "teach"
            raise AllMemError(
                f"{self.folder} is not complete; run the same `allmem data {command}` again to go "
                "on"
            )
        self.fingerprint = index.fingerprint
        self.seed, self.epochs = seed, epochs
        self.neighbours = max(1, neighbours)
        if not 0 <= rank < world:
            raise AllMemError(f"rank = {rank} must lie between 0 and world - 1 = {world - 1}")
        self.rank, self.world = rank, world
        self.shards = {name: index.of_class(name) for name in index.classes}
        self.rows = {n: sum(s["rows"] for s in shards) for n, shards in self.shards.items()}
        if not self.rows:
            raise AllMemError(f"{self.folder} holds no rows: every sample was left out")
        for name, share in (mix or {}).items():
            if name not in self.rows:
                raise AllMemError(f"mix: {unknown_name('length class', name, self.rows)}")
            if not share > 0:
                raise AllMemError(f"mix: {name} = {share} must be positive")
        self.mix = {n: float(s) for n, s in (mix or self.rows).items()}
        sizes = {n: sum(s["tokens"] for s in self.shards[n]) for n in self.mix}
        self.longest = max(index.config["lengths"][name] for name in self.mix)
        """Tokens that a row may have."""
        self.mean = sum(share * sizes[n] / self.rows[n] for n, share in self.mix.items()) / sum(
            self.mix.values()
        )
        """Tokens of a row on average."""
        self._hold_back(held_back)
        self.drawn = dict.fromkeys(self.mix, 0)
        self._orders: dict[str, tuple[int, list[tuple[int, int]]]] = {}
        self._open: OrderedDict[str, Shard] = OrderedDict()

    def _hold_back(self, count: int) -> None:
        total = sum(self.mix.values())
        left = count
        self._held: list[tuple[str, int]] = []
        """(class, row counted over the class's shards)"""
        for name, share in self.mix.items():
            taken = min(math.ceil(count * share / total), left)
            left -= taken
            if taken >= self.rows[name]:
                raise AllMemError(
                    f"{self.folder}: {taken} of the {self.rows[name]} rows of class {name} were to "
                    "be held back; hold back fewer, or build more data"
                )
            self.rows[name] -= taken
            self._held += [(name, self.rows[name] + i) for i in range(taken)]

    def held_back_rows(self) -> list[dict[str, Tensor]]:
        """The rows that are left out."""
        found = []
        for name, place in self._held:
            for number, shard in enumerate(self.shards[name]):
                if place < shard["rows"]:
                    found.append(self._read(name, number, place))
                    break
                place -= shard["rows"]
        return found

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        while True:
            chosen: tuple[str, int] | None = None
            # One step of the order for each process; the state counts the steps of all.
            for step in range(self.world):
                name = self._next_class()
                place = self.drawn[name]
                if self.epochs is not None and place >= self.epochs * self.rows[name]:
                    return
                self.drawn[name] += 1
                if step == self.rank:
                    chosen = name, place
            assert chosen is not None
            yield self._row(*chosen)

    def skip(self, rows: int) -> None:
        """Pass over the next ``rows`` rows of all processes together, without reading them."""
        for _ in range(rows):
            self.drawn[self._next_class()] += 1

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands; JSON-able."""
        return {
            "data": self.fingerprint,
            "seed": self.seed,
            "mix": self.mix,
            "neighbours": self.neighbours,
            "world": self.world,
            "held_back": len(self._held),
            "drawn": dict(self.drawn),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on behind the last row of another stream.

        Raises:
            AllMemError: if it read other data, or in another order.
        """
        own = self.state_dict()
        for key, value in own.items():
            if key != "drawn" and state.get(key) != value:
                raise AllMemError(
                    f"cannot go on reading {self.folder}: {key} was {state.get(key)!r}, now it is "
                    f"{value!r}"
                )
        self.drawn = {name: int(count) for name, count in state["drawn"].items()}

    def _next_class(self) -> str:
        """The class that lags furthest behind its share."""
        total = sum(self.mix.values())
        step = sum(self.drawn.values()) + 1
        return max(self.mix, key=lambda n: (self.mix[n] / total * step - self.drawn[n], n))

    def _row(self, name: str, place: int) -> dict[str, Tensor]:
        epoch, place = divmod(place, self.rows[name])
        if name not in self._orders or self._orders[name][0] != epoch:
            self._orders[name] = (epoch, self._order(name, epoch))
        return self._read(name, *self._orders[name][1][place])

    def _read(self, name: str, number: int, row: int) -> dict[str, Tensor]:
        """Row ``row`` of shard ``number`` of a class."""
        shard = self._shard(name, number)
        ids, response, positions = shard.row(row)
        ids = ids.long()
        labels = torch.where(response, ids, IGNORED)
        found = {"input_ids": ids, "labels": labels, "position_ids": positions}
        return found | shard.answered(row)

    def _order(self, name: str, epoch: int) -> list[tuple[int, int]]:
        """(shard, row) of every row of a class in an epoch."""
        draw = random.Random(f"{self.seed} {name} {epoch}")
        shards = list(range(len(self.shards[name])))
        left, kept = self.rows[name], []
        for shard in self.shards[name]:
            kept.append(min(shard["rows"], left))
            left -= kept[-1]
        draw.shuffle(shards)
        order: list[tuple[int, int]] = []
        for i in range(0, len(shards), self.neighbours):
            group = [
                (number, row)
                for number in shards[i : i + self.neighbours]
                for row in range(kept[number])
            ]
            draw.shuffle(group)
            order += group
        return order

    def _shard(self, name: str, number: int) -> Shard:
        entry = self.shards[name][number]
        file = entry["file"]
        if file not in self._open:
            self._open[file] = read_shard(self.folder, entry)
            while len(self._open) > self.neighbours * len(self.mix):
                self._open.popitem(last=False)
        self._open.move_to_end(file)
        return self._open[file]


def collate(rows: Sequence[Mapping[str, Tensor]], pad: int = 0) -> dict[str, Tensor]:
    """Rows as a batch, [B, T, ...] each. Shorter rows are padded at the right with a document of
    its own in which nothing is learned: a mask would hide from the model where documents begin."""
    longest = max(len(row["input_ids"]) for row in rows)
    fills = {"input_ids": pad, "labels": IGNORED}
    batch: dict[str, list[Tensor]] = {key: [] for key in rows[0]}
    for row in rows:
        missing = torch.arange(longest - len(row["input_ids"]))
        for key, tensors in batch.items():
            if key == "position_ids":
                fill = missing
            else:
                shape = (len(missing), *row[key].shape[1:])
                fill = row[key].new_full(shape, fills.get(key, 0))
            tensors.append(torch.cat([row[key], fill]))
    return {key: torch.stack(tensors) for key, tensors in batch.items()}
