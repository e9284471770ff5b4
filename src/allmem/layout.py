"""Where the tokens of one call stand: the only place that knows of padding, holes and packing.

A model is called on a grid of ``[B, T]`` slots, some of which hold padding and some of which begin
a new document. Mixers never see that grid. They see *rows*: one row for one sequence, its tokens
first (``lengths`` of them), then padding up to the longest row, and for each row the number of
tokens of that sequence that were read in earlier calls (``start``). ``gather`` goes from the grid
to the rows and ``scatter`` back. So a mixer that is right for ragged rows is right for left
padding, for a hole before the second turn of a batch, and for packed documents.

Counts live on the CPU: they decide control flow (which chunks close, how many keys are cached), and
reading them from a device would stall it at every layer.

Letters: B batch, T slots of a call, R rows, N slots of a row, D features.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from allmem.config import WindowConfig
from allmem.errors import AllMemError

__all__ = ["Layout", "Round", "document_starts"]


@dataclass(frozen=True)
class Round:
    """One step through the rows: the tokens of every row that fall into its open chunk.

    A row takes as many tokens as its chunk still has room for, so that rows whose chunks began at
    different times (unequal prompts, unaligned continuation) are processed together.
    """

    first: Tensor
    """[R] slot of the row at which this round begins (CPU)."""
    count: Tensor
    """[R] tokens that the row takes, 0 for a row that has no more (CPU)."""
    closes: Tensor
    """[R] whether the row's chunk is full afterwards (CPU bool)."""
    opens: Tensor
    """[R] whether the row's chunk was empty before (CPU bool)."""

    @cached_property
    def all_open(self) -> bool:
        """Whether every row's chunk was empty before."""
        return bool(self.opens.all())

    @cached_property
    def some_close(self) -> bool:
        return bool(self.closes.any())

    @cached_property
    def all_close(self) -> bool:
        return bool(self.closes.all())

    @cached_property
    def span(self) -> slice | None:
        """The slots as one slice if all rows take the same ones, else ``None``."""
        first, count = int(self.first[0]), int(self.count[0])
        if bool((self.first == first).all()) and bool((self.count == count).all()):
            return slice(first, first + count)
        return None

    def slots(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Slot indices and validity, both [R, longest count], for rows that take different
        slots."""
        offsets = torch.arange(int(self.count.max()))
        valid = offsets[None] < self.count[:, None]
        slots = torch.where(valid, self.first[:, None] + offsets[None], 0)
        return slots.to(device), valid.to(device)


@dataclass(frozen=True)
class Layout:
    """The rows of one call. Build it with ``Layout.dense`` or ``Layout.from_grid``."""

    start: Tensor
    """[R] int64, CPU: tokens of the row's sequence read before this call."""
    lengths: Tensor
    """[R] int64, CPU: tokens of the row in this call."""
    slots: int
    """N, slots of a row: at least the longest length."""
    device: torch.device
    window: WindowConfig | None = None
    """The window that this call is read with; ``None`` for the mixer's own. One state, one
    window."""
    chunk: int | None = None
    """The chunk that this call is read with; ``None`` for the mixer's own. One state, one chunk."""
    grid: tuple[int, int] | None = None
    """(B, T) of the grid that the rows were gathered from; ``None`` if the grid *is* the rows."""
    source: Tensor | None = None
    """[R, N] int64, device: flat slot of the grid behind every slot of a row (0 where padding)."""
    final: bool = False
    """Whether nobody will continue the rows: what they would leave behind need not be computed."""
    memo: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)
    """What all layers of a call share and the first of them works out."""

    # Construction

    @classmethod
    def dense(cls, start: Tensor | int, rows: int, slots: int, device: torch.device) -> Layout:
        """Every slot holds a token. ``start``: [R] or one number for all rows."""
        if isinstance(start, int):
            start = torch.full((rows,), start, dtype=torch.int64)
        lengths = torch.full((rows,), slots, dtype=torch.int64)
        return cls(start, lengths, slots, torch.device(device))

    @classmethod
    def ragged(
        cls, start: Tensor, lengths: Tensor, device: torch.device, slots: int | None = None
    ) -> Layout:
        """Rows that are compact already: row r's tokens are its first ``lengths[r]`` slots."""
        lengths = lengths.long().cpu()
        slots = int(lengths.max()) if slots is None else slots
        return cls(start.long().cpu(), lengths, slots, torch.device(device))

    @classmethod
    def from_grid(
        cls, start: Tensor, mask: Tensor | None, new_document: Tensor | None, device: torch.device
    ) -> Layout:
        """The rows behind a grid with padding or packed documents.

        Args:
            start: [B] int64, tokens read by each batch row before this call.
            mask: [B, T], true where a slot holds a token; ``None`` if all do.
            new_document: [B, T], true where a token begins a document; ``None`` for one per row.

        Raises:
            AllMemError: if documents are packed into a call that continues an earlier one.
        """
        if mask is None and new_document is None:
            raise ValueError("from_grid needs a mask or documents; use Layout.dense")
        shape = mask if mask is not None else new_document
        assert shape is not None
        batch, slots = shape.shape
        valid = torch.ones(batch, slots, dtype=torch.bool) if mask is None else mask.bool().cpu()
        if new_document is None:
            if bool(valid.all()):
                return cls.dense(start, batch, slots, device)
            row_of = torch.arange(batch)[:, None].expand(batch, slots)
            row_start = start.cpu()
        else:
            if bool(start.any()):
                raise AllMemError(
                    "packed documents cannot continue a cache; read them in a call of their own"
                )
            begins = new_document.cpu().clone()
            begins[:, 0] = True
            # A row's first token begins its first document, wherever padding pushed it.
            begins &= valid
            begins |= valid & (valid.cumsum(1) == 1)
            row_of = begins.flatten().cumsum(0).view(batch, slots) - 1
            row_start = torch.zeros(max(int(begins.sum()), 1), dtype=torch.int64)
        flat = valid.flatten().nonzero()[:, 0]
        rows = row_of.flatten()[flat]
        lengths = torch.bincount(rows, minlength=len(row_start))
        # Tokens come row by row, so a token's slot is its rank minus the tokens of the rows before.
        before = lengths.cumsum(0) - lengths
        slot = torch.arange(len(flat)) - before[rows]
        longest = max(int(lengths.max()), 1)
        source = torch.zeros(len(row_start), longest, dtype=torch.int64)
        source[rows, slot] = flat
        device = torch.device(device)
        return cls(
            row_start, lengths, longest, device, grid=(batch, slots), source=source.to(device)
        )

    def read_with(
        self, window: WindowConfig | None, chunk: int | None, final: bool = False
    ) -> Layout:
        """The same rows, to be read with another window and chunk than the mixers' own, or for the
        last time."""
        if window is None and chunk is None and not final:
            return self
        return dataclasses.replace(self, window=window, chunk=chunk, final=final, memo={})

    # What the rows look like

    @property
    def rows(self) -> int:
        return len(self.lengths)

    @property
    def end(self) -> Tensor:
        """[R] int64, CPU: tokens of each sequence read after this call."""
        return self.start + self.lengths

    @cached_property
    def full(self) -> bool:
        """Whether every slot of every row holds a token."""
        return bool((self.lengths == self.slots).all())

    @cached_property
    def aligned(self) -> bool:
        """Whether all rows start at the same token and every slot holds one."""
        return self.full and bool((self.start == self.start[0]).all())

    @cached_property
    def positions(self) -> Tensor:
        """[R, N] int64, device: position of every slot in its document."""
        return (self.start[:, None] + torch.arange(self.slots)[None]).to(self.device)

    @cached_property
    def grid_positions(self) -> Tensor:
        """[B, T] int64, device: ``positions`` in the slots of the grid, 0 where padding."""
        return self.scatter(self.positions[..., None])[..., 0]

    @cached_property
    def valid(self) -> Tensor:
        """[R, N] bool, device: whether a slot holds a token."""
        return (torch.arange(self.slots)[None] < self.lengths[:, None]).to(self.device)

    @cached_property
    def start_on_device(self) -> Tensor:
        return self.start.to(self.device)

    @cached_property
    def end_on_device(self) -> Tensor:
        return self.end.to(self.device)

    def starts_before(self, position: int) -> bool:
        """Whether some row's first token of the call may stand before this position."""
        return bool((self.start < position).any())

    def reaches_beyond(self, position: int) -> bool:
        """Whether some token of the call may stand beyond this position."""
        return int(self.end.max()) - 1 > position

    def rounds(self, chunk: int) -> list[Round]:
        """The steps in which an inner loop with chunks of ``chunk`` tokens goes through the
        rows."""
        if ("rounds", chunk) not in self.memo:
            rounds = []
            done = torch.zeros_like(self.lengths)
            while bool((done < self.lengths).any()):
                room = chunk - (self.start + done) % chunk
                count = torch.minimum(room, self.lengths - done)
                active = count > 0
                rounds.append(
                    Round(done, count, active & (count == room), active & (room == chunk))
                )
                done = done + count
            self.memo["rounds", chunk] = rounds
        return self.memo["rounds", chunk]

    # Between the grid and the rows

    def gather(self, x: Tensor) -> Tensor:
        """Grid [B, T, ...] to rows [R, N, ...]; padding slots repeat some token and must be
        ignored."""
        if self.source is None:
            return x
        return x.reshape(-1, *x.shape[2:])[self.source]

    def scatter(self, y: Tensor) -> Tensor:
        """Rows [R, N, ...] to the grid [B, T, ...]; zero where the grid holds padding."""
        if self.source is None:
            return y
        assert self.grid is not None
        out = y.new_zeros(self.grid[0] * self.grid[1], *y.shape[2:])
        return out.index_copy(0, self.source[self.valid], y[self.valid]).view(
            *self.grid, *y.shape[2:]
        )


def document_starts(position_ids: Tensor) -> Tensor | None:
    """[B, T] bool, true where positions start again at 0: how transformers marks packed documents.

    Returns ``None`` where no row holds more than one document.
    """
    begins = position_ids == 0
    begins[:, 0] = True
    return begins if bool((begins.sum(1) > 1).any()) else None
