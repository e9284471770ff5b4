"""What the short-term memory keeps of a sequence, and how it is read and written.

The ring holds the first S tokens of a document and the last W of the others, the growing state
holds all. Neither counts: ``Layout.start`` says how many tokens a row had before the call. Nothing
here knows of queries or scores.

Letters: R rows, N slots of a call, K KV heads, E head size of keys, Ev of values, S sinks,
W window.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from allmem.config import WindowConfig
from allmem.layout import Layout
from allmem.state import Slots, State, may_write

__all__ = ["GrowingState", "RingState", "ring_slots"]


def ring_slots(positions: Tensor, window: WindowConfig) -> Tensor:
    """The slot of the token at each document position: p if p < S, else S + (p - S) % W.

    Other engines read and write the same layout; it is a contract.
    """
    sinks = window.sinks
    return torch.where(
        positions < sinks, positions, sinks + (positions - sinks).remainder(window.window)
    )


@dataclass
class RingState(State):
    """Keys and values of the sinks and of the window; the shapes never change.

    Keys are stored as the pretrained attention made them: rotated at their absolute position.
    Slots that no token has reached hold finite numbers (``empty``: zeros).
    """

    keys: Tensor
    """[R, K, S + W, E]"""
    values: Tensor
    """[R, K, S + W, Ev]"""
    at: Slots | None = field(default=None, kw_only=True)
    """Of a state for one token alone: its rows are those at these slots of larger tensors,
    [P, K, S + W, E]. Only a kernel finds them there (``backend.finds_rows``)."""

    def rows_in_place(self, slots: Tensor) -> RingState:
        """The rows ``slots`` [R] int64, on the device, of all rows, for one call that writes them
        where they lie."""
        return dataclasses.replace(self, at=Slots(slots))

    @classmethod
    def empty(
        cls,
        rows: int,
        kv_heads: int,
        head_dim: int,
        value_dim: int,
        window: WindowConfig,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Self:
        """The state of ``rows`` sequences of which nothing has been read."""
        shape = (rows, kv_heads, window.sinks + window.window)
        return cls(
            torch.zeros(*shape, head_dim, dtype=dtype, device=device),
            torch.zeros(*shape, value_dim, dtype=dtype, device=device),
        )

    def history(self, count: int, layout: Layout, window: WindowConfig) -> tuple[Tensor, Tensor]:
        """The last ``count`` tokens before the call in time order: [R, K, count, E] and [.., Ev].

        Row r's cover positions start[r] - count ... start[r] - 1; where those are negative, some
        finite vectors. ``count`` is at most W - 1, so that all others are still in the ring.
        """
        positions = _row_starts(layout) + torch.arange(-count, 0, device=layout.device)
        slots = ring_slots(positions.clamp_min(0), window)
        return _take(self.keys, slots), _take(self.values, slots)

    def leaving(
        self, k: Tensor, v: Tensor, layout: Layout, window: WindowConfig
    ) -> tuple[Tensor, Tensor]:
        """For each token of the call, [R, K, N, E] and [R, K, N, Ev], the one W before it: what
        leaves the window as it is read. Where there is none, or a sink, some finite vector.

        To be asked of the state before the call.
        """
        count = min(k.shape[2], window.window)
        positions = _row_starts(layout) - window.window + torch.arange(count, device=layout.device)
        slots = ring_slots(positions.clamp_min(0), window)
        later = k.shape[2] - count
        keys = torch.cat([_take(self.keys, slots).to(k.dtype), k[:, :, :later]], 2)
        return keys, torch.cat([_take(self.values, slots).to(v.dtype), v[:, :, :later]], 2)

    def sinks(
        self, k: Tensor, v: Tensor, layout: Layout, window: WindowConfig
    ) -> tuple[Tensor, Tensor]:
        """The sinks as they are after the call, [R, K, S, E] and [R, K, S, Ev].

        A row that reaches its sinks in this call finds them in ``k`` and ``v`` [R, K, N, E]. A sink
        that the row has not reached holds some finite vector.
        """
        S = window.sinks
        keys, values = self.keys[:, :, :S], self.values[:, :, :S]
        if bool((layout.start >= S).all()):
            return keys, values
        source = torch.arange(S, device=layout.device) - _row_starts(layout)
        return _merge(keys, k, source, source >= 0), _merge(values, v, source, source >= 0)

    def write(self, k: Tensor, v: Tensor, layout: Layout, window: WindowConfig) -> RingState:
        """The state after a call of any length. ``k`` [R, K, N, E] and ``v`` [R, K, N, Ev].

        With gradients enabled the result is a copy, without it is this state, changed.
        """
        S, W = window.sinks, window.window
        start, end = _row_starts(layout), _row_ends(layout)
        slot = torch.arange(S + W, device=layout.device)
        # Of the positions that share a ring slot, the last one before `end` stays.
        turns = (end - 1 - slot).div(W, rounding_mode="floor")
        position = torch.where(slot < S, slot, slot + turns * W)
        arrives = (position >= start) & (position < end)
        arrives &= (slot < S) | (position >= S)
        keys = _merge(self.keys, k, position - start, arrives)
        values = _merge(self.values, v, position - start, arrives)
        if not may_write(self.keys):
            return RingState(keys, values)
        self.keys.copy_(keys)
        self.values.copy_(values)
        return self

    def write_one(self, k: Tensor, v: Tensor, layout: Layout, window: WindowConfig) -> RingState:
        """``write`` for a call of one slot, in constant work: k [R, K, 1, E], v [R, K, 1, Ev]."""
        slot = ring_slots(layout.start_on_device, window)
        row = torch.arange(layout.rows, device=layout.device)
        keep = None if layout.full else ~layout.valid[:, :, None]  # [R, 1, 1]
        state = self if may_write(self.keys) else self.clone()
        for kept, new in ((state.keys, k), (state.values, v)):
            token = new[:, :, 0].to(kept.dtype)  # [R, K, E]
            if keep is not None:
                token = torch.where(keep, kept[row, :, slot], token)
            kept[row, :, slot] = token
        return state


@dataclass
class GrowingState(State):
    """Keys and values of all tokens: the token at position p lies in slot p, whatever the row.

    Rows shorter than M, the longest row so far, are padded with zeros.
    """

    keys: Tensor
    """[R, K, M, E]"""
    values: Tensor
    """[R, K, M, Ev]"""

    @classmethod
    def empty(
        cls,
        rows: int,
        kv_heads: int,
        head_dim: int,
        value_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Self:
        """The state of ``rows`` sequences of which nothing has been read: M = 0."""
        return cls(
            torch.zeros(rows, kv_heads, 0, head_dim, dtype=dtype, device=device),
            torch.zeros(rows, kv_heads, 0, value_dim, dtype=dtype, device=device),
        )

    def append(self, k: Tensor, v: Tensor, layout: Layout) -> GrowingState:
        """A longer state: k [R, K, N, E], v [R, K, N, Ev]."""
        if layout.aligned and int(layout.start[0]) == self.keys.shape[2]:
            keys = torch.cat([self.keys, k.to(self.keys.dtype)], 2)
            return GrowingState(keys, torch.cat([self.values, v.to(self.values.dtype)], 2))
        grown = max(int(layout.end.max()) - self.keys.shape[2], 0)
        keys, values = (F.pad(x, (0, 0, 0, grown)) for x in (self.keys, self.values))
        source = torch.arange(keys.shape[2], device=layout.device) - layout.start_on_device[:, None]
        arrives = (source >= 0) & (source < layout.lengths.to(layout.device)[:, None])
        return GrowingState(_merge(keys, k, source, arrives), _merge(values, v, source, arrives))


def _row_starts(layout: Layout) -> Tensor:
    """[R, 1], or [1, 1] where all rows start at the same token, so that indices are made once."""
    return layout.start_on_device[: 1 if layout.aligned else None, None]


def _row_ends(layout: Layout) -> Tensor:
    return layout.end_on_device[: 1 if layout.aligned else None, None]


def _take(x: Tensor, index: Tensor) -> Tensor:
    """x [R, K, L, E] at index [R, M] or [1, M] of its third dimension: [R, K, M, E], a copy."""
    if len(index) == 1:
        return x.index_select(2, index[0])
    return x.gather(2, index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


def _merge(old: Tensor, new: Tensor, source: Tensor, arrives: Tensor) -> Tensor:
    """old [R, K, L, E], with new [R, K, N, E] at ``source`` where ``arrives``, both [R or 1, L]."""
    taken = _take(new, source.clamp(0, new.shape[2] - 1)).to(old.dtype)
    return torch.where(arrives[:, None, :, None], taken, old)
