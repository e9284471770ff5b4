"""``eviction``: what the latest queries do not look at is dropped (CItruS, Bai et al. 2024,
arXiv:2406.12018).

An interval's tokens see the cache and themselves. When the interval ends, each older token is
scored by the attention that it got from them, the mean over queries and heads; the sinks, the
interval itself and the highest scores stay: chunked state eviction.

**A question that comes before the text.** What a question after the text will need cannot be known
while the text is read. With ``priority`` = P the first P tokens of every document are what is
wanted: an instruction, a question, the beginning of a chat. They are never dropped, their queries
are kept, and they alone score, placed behind the cache as if they were asked again at the end of
every interval. Choose P about as long as the question: a few tokens of the text more or less only
add their own interests. With ``priority = 0`` the text itself scores, and a question at its end
finds what the last interval found worth keeping.

CItruS runs the instruction through the model again for every chunk, so its queries know what the
cache says; ours are those that it had when it was read. It has no sinks of its own: they win by
their scores.

Letters: R rows, Q query heads, K KV heads, E head size, L slots, I tokens of an interval, P first
tokens that score, n tokens of a round.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from allmem.attention.compact import CompactState, average, scores_of
from allmem.attention.rotary import rotate
from allmem.config import WindowConfig, require_positive
from allmem.errors import AllMemError
from allmem.memory.state import accumulation_dtype
from allmem.mixers.compacting import (
    INTERVALS,
    CacheOptions,
    CompactingMixer,
    Piece,
    Sizes,
    require_whole,
)
from allmem.mixers.registry import AttentionKind, register_attention
from allmem.state import State, may_write

__all__ = ["EvictionMixer", "EvictionOptions", "EvictionState"]


@dataclass(frozen=True)
class EvictionOptions(CacheOptions):
    """What eviction lets choose.

    Raises:
        AllMemError: on a value outside its range.
    """

    interval: int | None = None
    """Tokens between two evictions, whose queries score: I; ``None`` for an eighth of the slots."""
    priority: int = 0
    """First tokens of a document that stay, and whose queries score in place of the interval's: P;
    0 for none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        require_positive(name, interval=self.interval)
        require_whole(name, priority=self.priority)


@dataclass
class EvictionState(State):
    """The cache and what scores it."""

    cache: CompactState
    scores: Tensor
    """[R, L], attention that each slot got from the open interval, summed; at least fp32."""
    queries: Tensor | None
    """[R, Q, P, E], the queries of the first P tokens before RoPE; ``None`` for P = 0."""


class EvictionMixer(CompactingMixer[Sizes]):
    """Attention to what queries look at: see the module."""

    def sizes(self, window: WindowConfig) -> Sizes:
        options: EvictionOptions = self.options
        slots = options.slots or window.window + window.sinks
        sinks = window.sinks if options.sinks is None else options.sinks
        sinks = max(sinks, options.priority)
        interval = options.interval or max(1, slots // INTERVALS)
        least = sinks + 2 * interval + 1
        if slots < least:
            raise AllMemError(
                f"eviction: {slots} slots are too few for {sinks} first tokens, an interval of "
                f"{interval} that is read and one that was; give slots or a window for at least "
                f"{least}, or smaller numbers"
            )
        return Sizes(slots, sinks, interval)

    def init_state(
        self,
        rows: int,
        dtype: torch.dtype,
        device: torch.device,
        window: WindowConfig | None = None,
    ) -> EvictionState:
        cache = self.empty_cache(rows, dtype, device, window)
        wide = accumulation_dtype(dtype)
        scores = torch.zeros(rows, cache.keys.shape[2], dtype=wide, device=device)
        queries, first = None, self.options.priority
        if first:
            shape = (rows, self.shape.query_heads, first, self.shape.head_dim)
            queries = torch.zeros(shape, dtype=dtype, device=device)
        return EvictionState(cache, scores, queries)

    def kept_after(self, sizes: Sizes, intervals: int) -> int:
        return min(intervals * sizes.interval, sizes.slots - sizes.interval)

    def read(self, piece: Piece[Sizes], state: EvictionState) -> tuple[Tensor, EvictionState]:
        cache = state.cache.write(piece.k, piece.v, piece.before, piece.step)
        y, weights = average(*self.scored(piece, cache))
        scores, queries = state.scores, state.queries
        if queries is None:
            looked = torch.where(piece.valid[:, None, None, :, None], weights.detach(), 0)
            scores = scores.clone()
            scores[:, : piece.seen] += looked.sum((1, 2, 3)).to(scores.dtype)
        elif int(piece.first.min()) < queries.shape[2]:
            queries = _with_first(queries, piece)
        return y, EvictionState(cache, scores, queries)

    def close(self, piece: Piece[Sizes], state: EvictionState) -> EvictionState:
        sizes, device = piece.sizes, state.scores.device
        kept = sizes.slots - sizes.interval
        full = piece.step.closes & (piece.filled > kept)
        scores = state.scores
        if bool(full.any()):
            if state.queries is not None:
                scores = self._looked_up(piece, state.cache, state.queries)
            slot = torch.arange(sizes.slots, device=device)
            filled = piece.filled.to(device)[:, None]
            stays = (slot < sizes.sinks) | (slot >= filled - sizes.interval)
            scores = scores.masked_fill(stays, torch.inf)
            scores = scores.masked_fill(slot >= filled, -torch.inf)
            # Stable: of equal scores the earlier token stays, in a batch as alone.
            best = scores.sort(dim=-1, descending=True, stable=True).indices
            order = torch.cat([best[:, :kept].sort(-1).values, best[:, kept:]], -1)
            index = torch.where(full.to(device)[:, None], order, slot)
            state = EvictionState(state.cache.keep(index), state.scores, state.queries)
        begun = state.scores.masked_fill(piece.step.closes.to(device)[:, None], 0)
        return EvictionState(state.cache, begun, state.queries)

    def _looked_up(self, piece: Piece[Sizes], cache: CompactState, queries: Tensor) -> Tensor:
        """[R, L], attention from the first tokens' queries, asked again behind what was kept before
        the interval that ends."""
        device, first = queries.device, queries.shape[2]
        past = (piece.filled - piece.sizes.interval).clamp_min(1).to(device)
        q, keys = queries.to(piece.q.dtype), cache.keys.to(piece.q.dtype)
        if self.rotary is not None:
            behind = past[:, None] + torch.arange(first, device=device)
            q = rotate(q, self.rotary.table(behind, q.dtype))
        visible = torch.arange(keys.shape[2], device=device) < past[:, None, None]
        scores = scores_of(q, self.placed(piece, keys), piece.scale)
        _, weights = average(scores, visible.expand(-1, first, -1), cache.values.to(q.dtype))
        return weights.detach().sum((1, 2, 3))

    def state_bytes(self, tokens: int, dtype: torch.dtype) -> int:
        slots = self.sizes(self.window).slots
        queries = self.options.priority * self.shape.query_heads * self.shape.head_dim
        scores = slots * accumulation_dtype(dtype).itemsize
        return self._kv_bytes(slots, dtype) + queries * dtype.itemsize + scores

    def flops_by_part(self, tokens: int) -> dict[str, int]:
        sizes, found = self.sizes(self.window), super().flops_by_part(tokens)
        if not self.options.priority:
            return found
        ends = range(tokens // sizes.interval)
        kept = [self.kept_after(sizes, i) for i in ends]
        asked = sum(k for k in kept if k + sizes.interval > sizes.slots - sizes.interval)
        features = self.shape.query_heads * self.shape.head_dim
        return {**found, "cache scores": 2 * features * self.options.priority * asked}


def _with_first(queries: Tensor, piece: Piece[Sizes]) -> Tensor:
    """The kept queries [R, Q, P, E] with those that the round brings."""
    queries = queries if may_write(queries) else queries.clone()
    place = piece.first[:, None] + torch.arange(piece.q.shape[2])
    ours = (place < queries.shape[2]) & (torch.arange(piece.q.shape[2]) < piece.step.count[:, None])
    row, token = (i.to(queries.device) for i in ours.nonzero(as_tuple=True))
    where = place.to(queries.device)[row, token]
    queries[row, :, where] = piece.q[row, :, token].to(queries.dtype)
    return queries


register_attention(AttentionKind("eviction", EvictionOptions, EvictionMixer))
