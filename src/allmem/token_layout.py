"""One token for every row, with the counts on the device: a call that never waits for the CPU.

``Layout`` decides on the CPU which chunks close, so its calls can be neither compiled as a whole
nor captured in a CUDA graph: what they do depends on numbers. Here the shape of the work is always
the same. Masks on the device choose, and of what is done once in a chunk the caller says whether it
is done in this call (``closing``), so that the other calls need not do it for nothing.

Letters: R rows, C chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from allmem.config import WindowConfig
from allmem.layout import Layout, Round

__all__ = ["TokenLayout", "periods_that_end"]


@dataclass(frozen=True)
class _TokenRound(Round):
    """Its masks are on the device, and what they are is not known."""

    some: bool = False
    """``some_close``."""

    @property
    def all_open(self) -> bool:
        # Also where a chunk was empty: its sums are zeros.
        return False

    @property
    def some_close(self) -> bool:
        return self.some

    @property
    def all_close(self) -> bool:
        return self.some and len(self.closes) == 1

    @property
    def span(self) -> slice:
        return slice(0, 1)


@dataclass(frozen=True)
class TokenLayout(Layout):
    """A layout of one token for every row; ``start`` is on the device. Build it with ``next_of``.

    Mixers whose ``periods`` are known read it as they read any other.
    """

    closing: frozenset[int] = frozenset()
    """Those of the mixers' ``periods`` of which one may end for some row with this call."""

    @classmethod
    def next_of(
        cls,
        start: Tensor,
        window: WindowConfig | None = None,
        chunk: int | None = None,
        closing: frozenset[int] = frozenset(),
    ) -> TokenLayout:
        """The next token of rows of which ``start`` [R] int64 were read."""
        # On the CPU, and the same for every call.
        lengths = torch.ones(len(start), dtype=torch.int64)
        return cls(start, lengths, 1, start.device, window, chunk, closing=closing)

    @property
    def end(self) -> Tensor:
        return self.start + 1

    @property
    def full(self) -> bool:
        return True

    @property
    def aligned(self) -> bool:
        return len(self.lengths) == 1

    @property
    def positions(self) -> Tensor:
        return self.start[:, None]

    @property
    def grid_positions(self) -> Tensor:
        return self.positions

    @property
    def valid(self) -> Tensor:
        return torch.ones(len(self.lengths), 1, dtype=torch.bool, device=self.device)

    @property
    def start_on_device(self) -> Tensor:
        return self.start

    @property
    def end_on_device(self) -> Tensor:
        return self.end

    def starts_before(self, position: int) -> bool:
        return True

    def reaches_beyond(self, position: int) -> bool:
        return True

    def rounds(self, chunk: int) -> list[Round]:
        first = torch.zeros_like(self.lengths)
        within = self.start % chunk
        closes, opens = within == chunk - 1, within == 0
        return [_TokenRound(first, self.lengths, closes, opens, chunk in self.closing)]


def periods_that_end(periods: frozenset[int], start: Tensor) -> frozenset[int]:
    """Which of them end for some row with its next token.

    Args:
        start: [R] int64, CPU: tokens read by each row.
    """
    return frozenset(p for p in periods if bool(((start + 1) % p == 0).any()))
