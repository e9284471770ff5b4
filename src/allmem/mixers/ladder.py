"""``ladder``: every layer keeps another part of what is old (LaCache, Shi et al. 2025,
arXiv:2507.14204).

Of n neighbours in the cache each layer keeps m, shallow layers the earlier ones, deep layers the
later ones, so that all layers together still cover the n: a ladder. A cursor walks from the sinks
to the newest tokens and shortens one such group after the other, as many as are needed to make room
for the next interval; at the end it starts again, so what is old is thinned out further and
further. Nothing depends on what the tokens say.

A layer's m tokens are those whose ``span`` layers, ``span - overlap`` further for each next token,
include it, and their neighbours where that are fewer than m: the paper's figure, made even.
``order = "cyclic"`` deals the parts out to the layers in turn, as the authors' code does. Theirs
shortens the cache when a token finds it full, ours at the ends of intervals, and layers with
another mixer do not count.

Letters: R rows, L slots, I tokens of an interval, n tokens of a group, m that stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor

from allmem.attention.compact import CompactState, average
from allmem.config import WindowConfig, require_choice, require_positive
from allmem.errors import AllMemError
from allmem.mixers.compacting import (
    INTERVALS,
    CacheOptions,
    CompactingMixer,
    Piece,
    Sizes,
    require_whole,
)
from allmem.mixers.registry import AttentionKind, register_attention

__all__ = ["LadderMixer", "LadderOptions", "LadderSizes"]

Order = Literal["stairs", "cyclic"]


@dataclass(frozen=True)
class LadderOptions(CacheOptions):
    """What a ladder lets choose.

    Raises:
        AllMemError: on a value outside its range.
    """

    interval: int | None = None
    """Tokens between two shortenings: I; ``None`` for an eighth of the slots."""
    recent: int | None = None
    """Newest tokens that are never dropped; ``None`` for an eighth of the slots."""
    span: int | None = None
    """Layers that keep the same token; ``None`` for half of the ladder's layers."""
    overlap: int = 0
    """Layers that keep a token and its next neighbour too."""
    order: Order = "stairs"
    """Which layers keep the same: neighbours, or every so many."""

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        require_positive(name, interval=self.interval, recent=self.recent, span=self.span)
        require_whole(name, overlap=self.overlap)
        require_choice(name, "order", self.order, get_args(Order))
        if self.span is not None and self.overlap >= self.span:
            raise AllMemError(
                f"{name}: overlap = {self.overlap} must be smaller than span = {self.span}"
            )


@dataclass(frozen=True)
class LadderSizes(Sizes):
    """The numbers of one layer's ladder."""

    recent: int
    group: int
    """n"""
    stay: int
    """m"""
    offset: int
    """The first of the m in each group."""


class LadderMixer(CompactingMixer[LadderSizes]):
    """Attention to a ladder-shaped cache: see the module."""

    def sizes(self, window: WindowConfig) -> LadderSizes:
        options: LadderOptions = self.options
        slots = options.slots or window.window + window.sinks
        sinks = window.sinks if options.sinks is None else options.sinks
        interval = options.interval or max(1, slots // INTERVALS)
        recent = options.recent or max(1, slots // INTERVALS)
        # One layer has no others to share with: it keeps every second token.
        layers = max(2, self.place.layers)
        span = options.span or layers // 2
        if span >= layers or options.overlap >= span:
            raise AllMemError(
                f"ladder: span = {span} must be smaller than the {layers} layers of the ladder and "
                f"larger than overlap = {options.overlap}"
            )
        step = span - options.overlap
        group = 1 + _ceil(layers - span, step)
        stay = min(_ceil(span, step), group - 1)
        if options.order == "cyclic":
            offset = self.place.number % (group - stay + 1)
        else:
            first = _ceil(self.place.number - span + 1, step)
            offset = min(max(0, first), group - stay)
        least = sinks + group + recent + interval
        if slots < least:
            raise AllMemError(
                f"ladder: {slots} slots are too few for {sinks} sinks, groups of {group}, {recent} "
                f"recent tokens and an interval of {interval}; give slots or a window for at least "
                f"{least}, or smaller numbers"
            )
        return LadderSizes(slots, sinks, interval, recent, group, stay, offset)

    def init_state(
        self,
        rows: int,
        dtype: torch.dtype,
        device: torch.device,
        window: WindowConfig | None = None,
    ) -> CompactState:
        return self.empty_cache(rows, dtype, device, window)

    def kept_after(self, sizes: LadderSizes, intervals: int) -> int:
        return _after(sizes, intervals)[0]

    def read(self, piece: Piece[LadderSizes], state: CompactState) -> tuple[Tensor, CompactState]:
        state = state.write(piece.k, piece.v, piece.before, piece.step)
        y, _ = average(*self.scored(piece, state))
        return y, state

    def close(self, piece: Piece[LadderSizes], state: CompactState) -> CompactState:
        sizes = piece.sizes
        index = torch.arange(sizes.slots).repeat(len(piece.before), 1)
        for row in piece.step.closes.nonzero()[:, 0].tolist():
            kept, cursor = _after(sizes, int(piece.intervals[row]) - 1)
            stay, _ = _shorten(sizes, kept + sizes.interval, cursor)
            index[row, : len(stay)] = torch.tensor(stay)
        if bool((index == torch.arange(sizes.slots)).all()):
            return state
        return state.keep(index.to(state.keys.device))

    def state_bytes(self, tokens: int, dtype: torch.dtype) -> int:
        return self._kv_bytes(self.sizes(self.window).slots, dtype)


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _shorten(sizes: LadderSizes, filled: int, cursor: int) -> tuple[list[int], int]:
    """The slots that stay of ``filled``, so that an interval has room, and the cursor after it."""
    slots = list(range(filled))
    while len(slots) > sizes.slots - sizes.interval:
        if cursor + sizes.group > len(slots) - sizes.recent:
            cursor = sizes.sinks
        group = slots[cursor : cursor + sizes.group]
        stay = group[sizes.offset : sizes.offset + sizes.stay]
        slots[cursor : cursor + sizes.group] = stay
        cursor += sizes.stay
    return slots, cursor


@lru_cache(maxsize=64)
def _course(sizes: LadderSizes) -> tuple[list[tuple[int, int]], int]:
    """(filled slots, cursor) after 0, 1, 2 ... intervals, until they repeat, and where they repeat
    from."""
    course = [(0, sizes.sinks)]
    met = {course[0]: 0}
    while True:
        filled, cursor = course[-1]
        slots, cursor = _shorten(sizes, filled + sizes.interval, cursor)
        now = len(slots), cursor
        if now in met:
            return course, met[now]
        met[now] = len(course)
        course.append(now)


def _after(sizes: LadderSizes, intervals: int) -> tuple[int, int]:
    """(filled slots, cursor) after so many intervals."""
    course, again = _course(sizes)
    if intervals >= len(course):
        intervals = again + (intervals - again) % (len(course) - again)
    return course[intervals]


register_attention(AttentionKind("ladder", LadderOptions, LadderMixer))
