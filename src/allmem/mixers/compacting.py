"""What the KV policies with a constant cache share: a cache of L slots, shortened every I tokens.

The tokens of an interval are all kept until it ends; then a rule says which of the slots stay. Ends
of intervals are counted from a document's first token, so any split of a text gives the same. A
query sees every filled slot, and slots are positions (``allmem.attention.compact``).

A policy is a subclass: how large its cache is (``sizes``), how much of it is filled
(``kept_after``), and what stays (``read`` and ``close``).

Letters: R rows, N slots of a call, n tokens of a round, Q query heads, K KV heads, E head size,
L slots of the cache, I tokens of an interval, P rotated features.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from allmem.attention.compact import CompactState, scores_of
from allmem.attention.rotary import Rotary, rotate
from allmem.config import Options, WindowConfig, require_positive
from allmem.errors import AllMemError
from allmem.layout import Layout, Round
from allmem.memory.rounds import assemble, walk
from allmem.mixers.attention import AttentionMixer, AttentionShape
from allmem.mixers.base import Capabilities
from allmem.mixers.registry import Place
from allmem.state import State

__all__ = ["CacheOptions", "CompactingMixer", "Piece", "Sizes"]

INTERVALS = 8
"""Where the user names no interval: so many of them fill the cache."""


@dataclass(frozen=True)
class CacheOptions(Options):
    """What every KV policy lets choose.

    Raises:
        AllMemError: on a value outside its range.
    """

    slots: int | None = None
    """Keys and values in the cache: L; ``None`` for as many as window and sinks have, W + S."""
    sinks: int | None = None
    """First tokens of a document that are never dropped; ``None`` for the window's S."""

    def __post_init__(self) -> None:
        name = type(self).__name__
        require_positive(name, slots=self.slots)
        require_whole(name, sinks=self.sinks)


def require_whole(owner: str, **values: int | None) -> None:
    for name, value in values.items():
        if value is not None and (
            not isinstance(value, int) or isinstance(value, bool) or value < 0
        ):
            raise AllMemError(f"{owner}: {name} = {value!r} must be a whole number, 0 or more")


@dataclass(frozen=True)
class Sizes:
    """A policy's numbers for one cache, every one filled in."""

    slots: int
    """L"""
    sinks: int
    interval: int
    """I"""


AnySizes = TypeVar("AnySizes", bound=Sizes)


@dataclass(frozen=True)
class Piece(Generic[AnySizes]):
    """The tokens of one round: each row's, up to the end of its interval."""

    q: Tensor
    """[R, Q, n, E], before RoPE; zeros where a row has fewer tokens."""
    k: Tensor
    """[R, K, n, E], as ``q``."""
    v: Tensor
    """[R, K, n, E]"""
    scale: float
    step: Round
    layout: Layout
    sizes: AnySizes
    before: Tensor
    """[R] filled slots before the round (CPU)."""

    @cached_property
    def filled(self) -> Tensor:
        """[R] filled slots after it (CPU)."""
        return self.before + self.step.count

    @cached_property
    def seen(self) -> int:
        """Slots that some row has filled."""
        return int(self.filled.max())

    @cached_property
    def first(self) -> Tensor:
        """[R] position of the round's first token in its document (CPU)."""
        return self.layout.start + self.step.first

    @cached_property
    def intervals(self) -> Tensor:
        """[R] intervals that have ended with the round (CPU)."""
        return (self.first + self.step.count) // self.sizes.interval

    @cached_property
    def places(self) -> Tensor:
        """[R or 1, n] the tokens' slots."""
        rows = 1 if bool((self.before == self.before[0]).all()) else None
        before = self.before[:rows, None].to(self.q.device)
        return before + torch.arange(self.q.shape[2], device=self.q.device)

    @cached_property
    def valid(self) -> Tensor:
        """[R, n] whether a row has such a token."""
        place = torch.arange(self.q.shape[2])
        return (place < self.step.count[:, None]).to(self.q.device)


class CompactingMixer(AttentionMixer, Generic[AnySizes]):
    """A pretrained attention to a cache that is shortened every I tokens.

    Args:
        core, shape, rotary: as ``AttentionMixer``.
        window: W and S, which say how large the cache is where ``options`` does not;
            ``layout.window``, if set, takes their place.
        options: the policy's.
        place: of the layer among those of its policy.

    Raises:
        AllMemError: if the cache is too small for the policy.
    """

    capabilities = Capabilities(constant_state=True, trainable=False)
    rotates = False

    def __init__(
        self,
        core: nn.Module,
        shape: AttentionShape,
        rotary: Rotary | None,
        window: WindowConfig,
        options: Any,
        place: Place,
    ) -> None:
        super().__init__(core, shape, rotary)
        self.window = window
        self.options = options
        self.place = place
        self.sizes(window)

    # What a policy says

    def sizes(self, window: WindowConfig) -> AnySizes:
        """The cache beside this window.

        Raises:
            AllMemError: if it is too small for the policy.
        """
        raise NotImplementedError

    def kept_after(self, sizes: AnySizes, intervals: int) -> int:
        """Slots that are filled after so many intervals from the start of a document."""
        raise NotImplementedError

    def read(self, piece: Piece[AnySizes], state: Any) -> tuple[Tensor, Any]:
        """What a round's tokens see, [R, Q, n, E], and the state with them in the cache."""
        raise NotImplementedError

    def close(self, piece: Piece[AnySizes], state: Any) -> Any:
        """The state after a round that ended some rows' intervals (``piece.step.closes``)."""
        raise NotImplementedError

    # What they share

    def mix(
        self, q: Tensor, k: Tensor, v: Tensor, state: State, layout: Layout, scale: float
    ) -> tuple[Tensor, State]:
        sizes = self.sizes(layout.window or self.window)
        rounds, pieces = layout.rounds(sizes.interval), []
        for step, (q_now, k_now, v_now) in walk(rounds, q, k, v):
            began = (layout.start + step.first).tolist()
            before = torch.tensor([self.filled(sizes, tokens) for tokens in began])
            piece = Piece(q_now, k_now, v_now, scale, step, layout, sizes, before)
            y, state = self.read(piece, state)
            pieces.append(y)
            if step.some_close:
                state = self.close(piece, state)
        if not rounds:
            return torch.zeros_like(q), state
        return assemble(pieces, rounds, layout), state

    def filled(self, sizes: AnySizes, tokens: int) -> int:
        """Slots that are filled after ``tokens`` tokens of a document."""
        intervals, rest = divmod(tokens, sizes.interval)
        return self.kept_after(sizes, intervals) + rest

    def scored(self, piece: Piece[AnySizes], cache: CompactState) -> tuple[Tensor, Tensor, Tensor]:
        """How the round's tokens see the cache, theirs among it: the scores [R, K, G, n, L'], what
        is visible [R or 1, n, L'], and the values [R, K, L', E] of the L' slots that are filled."""
        seen = slice(piece.seen)
        q, keys = piece.q, cache.keys[:, :, seen].to(piece.q.dtype)
        visible = torch.arange(piece.seen, device=q.device) <= piece.places[..., None]
        scores = scores_of(self.turned(piece, q), self.placed(piece, keys), piece.scale)
        return scores, visible, cache.values[:, :, seen].to(piece.v.dtype)

    def placed(self, piece: Piece[AnySizes], x: Tensor) -> Tensor:
        """x [R, heads, L', E] rotated to the first slots."""
        if self.rotary is None:
            return x
        cos, sin = self.rotary.at_slots(piece.layout, piece.sizes.slots, x.dtype)
        return rotate(x, (cos[:, : x.shape[2]], sin[:, : x.shape[2]]))

    def turned(self, piece: Piece[AnySizes], q: Tensor) -> Tensor:
        """Queries [R, Q, n, E] rotated to the slots of the round's tokens."""
        if self.rotary is None:
            return q
        # A padding slot has a place too, perhaps behind the last one.
        places = piece.places.clamp(max=piece.sizes.slots - 1)
        cos, sin = self.rotary.at_slots(piece.layout, piece.sizes.slots, q.dtype)
        return rotate(q, (cos[0][places], sin[0][places]))

    def empty_cache(
        self, rows: int, dtype: torch.dtype, device: torch.device, window: WindowConfig | None
    ) -> CompactState:
        """A cache of which nothing is filled."""
        slots, shape = self.sizes(window or self.window).slots, self.shape
        return CompactState.empty(rows, shape.kv_heads, shape.head_dim, slots, dtype, device)

    def pairs(self, tokens: int) -> int:
        sizes = self.sizes(self.window)
        whole, rest = divmod(tokens, sizes.interval)
        kept = [self.kept_after(sizes, intervals) for intervals in range(whole + 1)]
        own = whole * _triangle(sizes.interval) + _triangle(rest)
        return sum(kept[:whole]) * sizes.interval + kept[whole] * rest + own


def _triangle(tokens: int) -> int:
    return tokens * (tokens + 1) // 2
