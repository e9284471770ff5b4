"""Rows of several sources in a fixed turn, so that a batch may hold some of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from allmem.distill.rows import Row, Rows

__all__ = ["MixedRows"]


class MixedRows:
    """Several sources as one.

    Args:
        parts: sources, each with how many of its rows come in a turn.
    """

    def __init__(self, parts: Sequence[tuple[int, Rows]]) -> None:
        self.shares = [share for share, _ in parts]
        self.sources = [rows for _, rows in parts]
        self.turn = _turn(self.shares)
        self.longest = max(rows.longest for rows in self.sources)
        self.mean = sum(share * rows.mean for share, rows in parts) / len(self.turn)

    def place(self, number: int) -> tuple[int, int]:
        """Which source row ``number`` comes from, and its number there."""
        turns, within = divmod(number, len(self.turn))
        source = self.turn[within]
        return source, turns * self.shares[source] + self.turn[:within].count(source)

    def read(self, first: int, rank: int = 0, world: int = 1) -> Iterator[Row]:
        """Rows number ``first + rank``, ``first + rank + world`` and so on."""
        # Other processes' rows are made here too and passed over: sources know one order alone.
        begun: dict[int, Iterator[Row]] = {}
        number = first
        while True:
            source, own = self.place(number)
            if source not in begun:
                begun[source] = self.sources[source].read(own)
            row = next(begun[source])
            if (number - first) % world == rank:
                yield row
            number += 1

    def fingerprint(self) -> str:
        """A short hash of everything that decides which row is which."""
        parts = zip(self.shares, self.sources, strict=True)
        return "; ".join(f"{share} of {rows.fingerprint()}" for share, rows in parts)


def _turn(shares: Sequence[int]) -> list[int]:
    """The sources of one turn, each spread evenly over it."""
    places = [
        ((i + 0.5) / share, source) for source, share in enumerate(shares) for i in range(share)
    ]
    return [source for _, source in sorted(places)]
