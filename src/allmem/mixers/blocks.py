"""``blocks``: what leaves the window is kept on the CPU in blocks and looked up by similarity
(InfLLM, Xiao et al. 2024, arXiv:2402.04617). Nothing is lost, and the device keeps a constant part.

The device holds the sinks and the newest tokens. When B tokens have come, the B oldest after the
sinks leave as a block: their keys and values go to the CPU, and the mean of the ``representatives``
keys that got the most attention while they were in the cache stands for them, for each KV head.
Every ``lookup`` tokens the queries since the last lookup, the current one among them, are compared
with what stands for each block, over all heads; the ``retrieved`` best blocks are fetched, and
every token up to the next lookup sees them beside the cache, in one softmax. All that is fetched
lies at one distance, just beyond the cache.

InfLLM chooses blocks with the mean query of a chunk that contains later tokens; here a token knows
none of them, so ``lookup = 1`` is its decoding, in prefill too, and a larger one asks less often.
Its representatives stand for a query head, ours for a KV head; tokens that left the window and fill
no block yet are at one distance there, at their own here; it keeps fetched blocks on the device,
here they are fetched anew.

Letters: R rows, Q query heads, K KV heads, G = Q / K, E head size, L slots of the cache, B tokens
of a block, M blocks, n tokens of a round, T most blocks that are fetched, g lookups of a round.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from allmem.attention.block_store import BlockStore
from allmem.attention.compact import CompactState, average, scores_of
from allmem.attention.rotary import rotate
from allmem.config import WindowConfig, require_positive
from allmem.errors import AllMemError
from allmem.memory.state import accumulation_dtype
from allmem.mixers.base import Capabilities
from allmem.mixers.compacting import CacheOptions, CompactingMixer, Piece, Sizes
from allmem.mixers.registry import AttentionKind, register_attention
from allmem.state import State

__all__ = ["BlocksMixer", "BlocksOptions", "BlocksSizes", "BlocksState"]

BLOCKS = 32
"""Where the user names no block: so many of them fill the slots (InfLLM: 32 in its window)."""
RETRIEVED = 3
"""Where the user names no number: a third of the slots is fetched (InfLLM)."""


@dataclass(frozen=True)
class BlocksOptions(CacheOptions):
    """What blocks let choose. ``slots`` count the cache and the blocks that are fetched.

    Raises:
        AllMemError: on a value outside its range.
    """

    block: int | None = None
    """Tokens of a block: B; ``None`` for a 32nd of the slots."""
    retrieved: int | None = None
    """Blocks that a token sees at most: T; ``None`` for a third of the slots."""
    lookup: int = 1
    """Tokens between two lookups."""
    representatives: int = 4
    """Keys of a block whose mean stands for it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(
            type(self).__name__,
            block=self.block,
            retrieved=self.retrieved,
            lookup=self.lookup,
            representatives=self.representatives,
        )


@dataclass(frozen=True)
class BlocksSizes(Sizes):
    """``slots`` of the cache alone, a multiple of ``interval``, which is B."""

    retrieved: int
    """T"""

    def stored(self, tokens: int) -> int:
        """Blocks on the CPU after so many tokens."""
        return max(0, tokens // self.interval - self.slots // self.interval + 1)


@dataclass
class BlocksState(State):
    """The cache on the device, and the blocks on the CPU."""

    cache: CompactState
    received: Tensor
    """[R, K, L], attention that the tokens of the cache got; at least fp32."""
    asking: Tensor
    """[R, K, E], queries before RoPE since the last lookup, summed; at least fp32."""
    chosen: Tensor
    """[R, T] int64 (CPU), blocks of the last lookup, -1 for none."""
    store: BlockStore


class BlocksMixer(CompactingMixer[BlocksSizes]):
    """Attention to a window and to blocks that are looked up: see the module."""

    capabilities = Capabilities(constant_state=False, trainable=False)

    def sizes(self, window: WindowConfig) -> BlocksSizes:
        options: BlocksOptions = self.options
        slots = options.slots or window.window + window.sinks
        sinks = window.sinks if options.sinks is None else options.sinks
        block = options.block or max(1, slots // BLOCKS)
        retrieved = options.retrieved or max(1, slots // (RETRIEVED * block))
        cache = (slots - retrieved * block) // block * block
        if cache - block <= sinks:
            least = (sinks // block + 2 + retrieved) * block
            raise AllMemError(
                f"blocks: {slots} slots are too few for {sinks} sinks, {retrieved} blocks of "
                f"{block} that are fetched and one that fills; give slots or a window for at least "
                f"{least}, or smaller numbers"
            )
        return BlocksSizes(cache, sinks, block, retrieved)

    def init_state(
        self,
        rows: int,
        dtype: torch.dtype,
        device: torch.device,
        window: WindowConfig | None = None,
    ) -> BlocksState:
        sizes = self.sizes(window or self.window)
        K, E, wide = self.shape.kv_heads, self.shape.head_dim, accumulation_dtype(dtype)
        store = BlockStore.empty(rows, K, E, sizes.interval, dtype, device)
        return BlocksState(
            self.empty_cache(rows, dtype, device, window),
            torch.zeros(rows, K, sizes.slots, dtype=wide, device=device),
            torch.zeros(rows, K, E, dtype=wide, device=device),
            torch.full((rows, sizes.retrieved), -1, device=store.keys.device),
            store,
        )

    def kept_after(self, sizes: BlocksSizes, intervals: int) -> int:
        return min(intervals * sizes.interval, sizes.slots - sizes.interval)

    def read(self, piece: Piece[BlocksSizes], state: BlocksState) -> tuple[Tensor, BlocksState]:
        cache = state.cache.write(piece.k, piece.v, piece.before, piece.step)
        sees, asking, chosen = self._look_up(piece, state)
        scores, visible, values = self.scored(piece, cache)
        if bool(sees.any()):
            far_keys, far_values, far = state.store.fetch(sees, values)
            beyond = self._beyond(piece.sizes, piece.q)
            scores = torch.cat([scores, scores_of(beyond, far_keys, piece.scale)], -1)
            visible = torch.cat([visible.expand(len(values), -1, -1), far], -1)
            values = torch.cat([values, far_values], 2)
        y, weights = average(scores, visible, values)
        got = weights[..., : piece.seen].detach()
        got = torch.where(piece.valid[:, None, None, :, None], got, 0).sum((2, 3))
        received = state.received.clone()
        received[..., : piece.seen] += got.to(received.dtype)
        return y, BlocksState(cache, received, asking, chosen, state.store)

    def _look_up(
        self, piece: Piece[BlocksSizes], state: BlocksState
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Which blocks every token sees, [R, n, M] bool (CPU), and ``asking`` and ``chosen`` after
        the round."""
        n, device = piece.q.shape[2], piece.q.device
        valid = torch.arange(n) < piece.step.count[:, None]
        position = piece.first[:, None] + torch.arange(n)
        looks = (position % self.options.lookup == 0) & valid  # [R, n]
        # A token asks in the first lookup at or after it: its number is that of those before it.
        number, last = looks.cumsum(1) - looks.long(), looks.sum(1)
        g, row = int(last.max()), torch.arange(len(last))
        asks = (number[..., None] == torch.arange(g + 1)) & valid[..., None]  # [R, n, g + 1]
        # A block has one vector for all query heads of a KV head.
        q = piece.q.unflatten(1, (state.asking.shape[1], -1)).sum(2).detach()
        q = q.to(state.asking.dtype)
        sums = torch.einsum("rkne,rng->rgke", q, asks.to(device, q.dtype))
        sums[:, 0] += state.asking
        asking = sums[row.to(device), last.to(device)]
        questions = self._beyond(piece.sizes, sums[:, :g].transpose(1, 2)).transpose(1, 2)
        best = state.store.best(questions, self._stored(piece), piece.sizes.retrieved)
        # What was chosen before the first lookup of the round, and in each.
        choices = torch.cat([state.chosen[:, None], best], 1)
        mine = choices.gather(1, (number + looks)[..., None].expand(-1, -1, best.shape[2]))
        blocks = state.store.keys.shape[1]
        sees = torch.zeros(*mine.shape[:2], blocks + 1, dtype=torch.bool)
        # -1 goes to the last place, which is no block's.
        sees.scatter_(2, mine % (blocks + 1), True)
        return sees[..., :blocks] & valid[..., None], asking, choices[row, last]

    def _beyond(self, sizes: BlocksSizes, q: Tensor) -> Tensor:
        """Queries [R, heads, n, E] as they meet keys without RoPE at the one distance: L."""
        if self.rotary is None:
            return q
        distance = torch.full((1, 1), sizes.slots, device=q.device)
        cos, sin = self.rotary.table(distance, q.dtype)
        # The keys lack the attention factor that RoPE would have put on them too.
        return rotate(q, (cos * self.rotary.scaling, sin * self.rotary.scaling))

    @staticmethod
    def _stored(piece: Piece[BlocksSizes]) -> Tensor:
        """[R] blocks on the CPU before the round (CPU)."""
        return torch.tensor([piece.sizes.stored(tokens) for tokens in piece.first.tolist()])

    def close(self, piece: Piece[BlocksSizes], state: BlocksState) -> BlocksState:
        sizes, cache, got = piece.sizes, state.cache, state.received
        full = piece.step.closes & (piece.filled == sizes.slots)
        if not bool(full.any()):
            return state
        leaving = slice(sizes.sinks, sizes.sinks + sizes.interval)
        k, v = cache.keys[:, :, leaving], cache.values[:, :, leaving]
        best = got[:, :, leaving].sort(dim=-1, descending=True, stable=True).indices
        best = best[..., : self.options.representatives, None]
        heads = k.detach().gather(2, best.expand(-1, -1, -1, k.shape[3])).mean(2)
        row = full.nonzero()[:, 0]
        room = max(sizes.stored(tokens) for tokens in piece.layout.end.tolist())
        store = state.store.add(row, self._stored(piece)[row], (k, v, heads), room)
        # The others move up; the last slots are empty.
        emptied = full.to(got.device)[:, None]
        slot = torch.arange(sizes.slots, device=got.device)
        after = torch.where(slot < sizes.sinks, slot, slot + sizes.interval) % sizes.slots
        index = torch.where(emptied, after, slot)
        received = got.gather(2, index[:, None].expand_as(got))
        emptied = emptied & (slot >= sizes.slots - sizes.interval)
        received = received.masked_fill(emptied[:, None], 0)
        return BlocksState(cache.keep(index), received, state.asking, state.chosen, store)

    def state_bytes(self, tokens: int, dtype: torch.dtype) -> int:
        sizes = self.sizes(self.window)
        one = self._kv_bytes(sizes.interval, dtype) + self._kv_bytes(1, dtype) // 2
        chosen = sizes.retrieved * torch.int64.itemsize
        return self._own_bytes(sizes, dtype) + chosen + sizes.stored(tokens) * one

    def device_bytes(self, tokens: int, dtype: torch.dtype) -> int:
        sizes = self.sizes(self.window)
        fetched = min(sizes.retrieved, sizes.stored(tokens)) * sizes.interval
        return self._own_bytes(sizes, dtype) + self._kv_bytes(fetched, dtype)

    def _own_bytes(self, sizes: BlocksSizes, dtype: torch.dtype) -> int:
        """Of the part of the state that stays on the device."""
        wide = accumulation_dtype(dtype).itemsize
        sums = self.shape.kv_heads * (sizes.slots + self.shape.head_dim) * wide
        return self._kv_bytes(sizes.slots, dtype) + sums

    def pairs(self, tokens: int) -> int:
        sizes = self.sizes(self.window)
        # A token sees what was stored at the last lookup.
        position = torch.arange(tokens)
        looked = position - position % self.options.lookup
        fetched = _stored_after(sizes, looked).clamp(max=sizes.retrieved).sum()
        return super().pairs(tokens) + int(fetched) * sizes.interval

    def flops_by_part(self, tokens: int) -> dict[str, int]:
        sizes = self.sizes(self.window)
        stored = _stored_after(sizes, torch.arange(0, tokens, self.options.lookup)).sum()
        features = self.shape.kv_heads * self.shape.head_dim
        found = super().flops_by_part(tokens)
        return {**found, "cache scores": 2 * features * int(stored)}


def _stored_after(sizes: BlocksSizes, tokens: Tensor) -> Tensor:
    """``BlocksSizes.stored`` of many."""
    blocks = tokens // sizes.interval - sizes.slots // sizes.interval + 1
    return blocks.clamp_min(0)


register_attention(AttentionKind("blocks", BlocksOptions, BlocksMixer))
