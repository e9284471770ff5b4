"""Rows of a data folder in a shuffled order that only the seed decides, endless or for some epochs.

The order of a class in an epoch is a pure function of the seed: shards are shuffled, then rows
among a few neighbouring shards, so that a few shards at a time are in memory. Classes take turns by
an exact ratio. So a position is a handful of counts, and ``state_dict`` restores the stream to the
very next row.

Letters: T tokens of a row, B rows of a batch.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from allmem.data.shards import Shard, read_index, read_shard
from allmem.errors import AllMemError, unknown_name

__all__ = ["IGNORED", "RowStream", "collate"]

IGNORED = -100
"""Label of a token that is not learned (torch's default)."""


class RowStream:
    """Iterates over packed rows: dictionaries of ``input_ids``, ``labels`` and ``position_ids``,
    each [T] int64.

    ``labels`` hold the token itself where it is the assistant's to write, else ``IGNORED``; they
    are not shifted (as transformers expects them). ``position_ids`` restart at 0 with each
    document.

    Args:
        folder: made by ``allmem data build``.
        mix: class -> share of the rows, such as ``{"long": 1, "short": 4}``; default: every class
            in proportion to its rows, so that all end together.
        seed: decides the order.
        epochs: stop before any class is read once more than this; ``None`` for endless.
        neighbours: shards among which rows are shuffled, and that are in memory at a time.
        rank, world: of this process: it gets every ``world``-th row of the one order.

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
    ) -> None:
        self.folder = Path(folder)
        index = read_index(self.folder)
        if not index.done:
            raise AllMemError(
                f"the build of {self.folder} is not complete; run `allmem data build` again to go "
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
        self.drawn = dict.fromkeys(self.mix, 0)
        self._orders: dict[str, tuple[int, list[tuple[int, int]]]] = {}
        self._open: OrderedDict[str, Shard] = OrderedDict()

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

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands; JSON-able."""
        return {
            "data": self.fingerprint,
            "seed": self.seed,
            "mix": self.mix,
            "neighbours": self.neighbours,
            "world": self.world,
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
        number, row = self._orders[name][1][place]
        ids, response, positions = self._shard(name, number).row(row)
        ids = ids.long()
        labels = torch.where(response, ids, IGNORED)
        return {"input_ids": ids, "labels": labels, "position_ids": positions}

    def _order(self, name: str, epoch: int) -> list[tuple[int, int]]:
        """(shard, row) of every row of a class in an epoch."""
        draw = random.Random(f"{self.seed} {name} {epoch}")
        shards = list(range(len(self.shards[name])))
        draw.shuffle(shards)
        order: list[tuple[int, int]] = []
        for i in range(0, len(shards), self.neighbours):
            group = [
                (number, row)
                for number in shards[i : i + self.neighbours]
                for row in range(self.shards[name][number]["rows"])
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
    """Rows as a batch, [B, T] each. Shorter rows are padded at the right with a document of its own
    in which nothing is learned: a mask would hide from the model where the documents begin."""
    longest = max(len(row["input_ids"]) for row in rows)
    batch: dict[str, list[Tensor]] = {"input_ids": [], "labels": [], "position_ids": []}
    for row in rows:
        missing = torch.arange(longest - len(row["input_ids"]))
        fills = (torch.full_like(missing, pad), torch.full_like(missing, IGNORED), missing)
        for key, fill in zip(batch, fills, strict=True):
            batch[key].append(torch.cat([row[key], fill]))
    return {key: torch.stack(tensors) for key, tensors in batch.items()}
