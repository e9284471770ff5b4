"""Both attentions block by block of queries, by plain torch operations.

A block gathers only the keys in its reach: work is O(N * (W + S)) and no L x L matrix exists. Runs
on every device and in every floating dtype, forward and backward.

The window part of a query is a plain sliding window over its last W tokens, sinks among them while
they are in reach. The sinks that the window has left are scored by another query, ``q_sink``.

Letters: R rows, N slots of a call, Q query heads, K KV heads, G = Q / K, E head size of keys, Ev of
values, S sinks, W window, B queries of a block, L keys in its reach, H tokens of history.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from allmem.attention.state import GrowingState, RingState
from allmem.config import WindowConfig
from allmem.layout import Layout

__all__ = ["BLOCK", "full_attention", "window_attention", "window_mass"]

BLOCK = 128
"""Queries of a block: B.

Measured on one core with AVX512-BF16, in milliseconds, for 4096 queries with 9 query and 3 KV heads
of 64, W = 512, S = 4, forward / forward and backward:

    B             64          128          256
    fp32    108 / 342    111 / 380    143 / 499
    bf16     68 / 253     66 / 240    102 / 460

With W = 4096, S = 128 and heads of 128: 1.24, 1.21 and 1.33 s forward in fp32. torch's fused
scaled_dot_product_attention, on blocks of 256, the best for it, took 129 / 610 in fp32 and
138 / 595 in bf16, with checkpoints. There the sinks were one more key that carried their
logsumexp, since features of their own for the sinks' queries double the products.
"""


def window_attention(
    q: Tensor,
    q_sink: Tensor | None,
    k: Tensor,
    v: Tensor,
    state: RingState,
    layout: Layout,
    window: WindowConfig,
    *,
    scale: float,
) -> tuple[Tensor, RingState]:
    """As ``allmem.attention.window_attention``."""
    reach = min(window.window - 1, int(layout.start.max()))  # H
    old = [x.to(k.dtype) for x in state.history(reach, layout, window)]
    plan = _Plan(layout, window, q.dtype, q.shape[2], reach)
    if plan.any_sink_left(q.shape[2]):
        sinks = [x.to(k.dtype) for x in state.sinks(k, v, layout, window)]
    else:
        sinks = [k[:, :, :0], v[:, :, :0]]
    q_sink = q if q_sink is None else q_sink
    out: Tensor = _Blockwise.apply(plan, scale, q, q_sink, *sinks, *old, k, v)
    return out, state.write(k, v, layout, window)


def window_mass(
    q: Tensor,
    q_sink: Tensor | None,
    k: Tensor,
    state: RingState,
    layout: Layout,
    window: WindowConfig,
    *,
    scale: float,
) -> Tensor:
    """As ``allmem.attention.window_mass``."""
    reach = min(window.window - 1, int(layout.start.max()))  # H
    # Of keys alone: values of no width.
    kept, none = RingState(state.keys, state.values[..., :0]), k[..., :0]
    old = kept.history(reach, layout, window)[0].to(k.dtype)
    plan = _Plan(layout, window, q.dtype, q.shape[2], reach)
    sinks = k[:, :, :0]
    if plan.any_sink_left(q.shape[2]):
        sinks = kept.sinks(k, none, layout, window)[0].to(k.dtype)
    q_sink = q if q_sink is None else q_sink
    wide = torch.promote_types(q.dtype, torch.float32)
    pieces = []
    for block in plan.blocks():
        scores = block.scores(scale, q, q_sink, block.keys(sinks, old, k))
        mass = torch.logsumexp(scores.to(wide), -1)  # [R, K, G * B]
        pieces.append(mass.unflatten(2, (-1, block.last - block.first)).flatten(1, 2))
    return torch.cat(pieces, 2)


def full_attention(
    q: Tensor, k: Tensor, v: Tensor, state: GrowingState, layout: Layout, *, scale: float
) -> tuple[Tensor, GrowingState]:
    """As ``allmem.attention.full_attention``."""
    state = state.append(k, v, layout)
    # A state may be longer than its rows: the longest was dropped from the batch.
    end = int(layout.end.max())
    keys, values = (x[:, :, :end].to(k.dtype) for x in (state.keys, state.values))
    if layout.aligned and (int(layout.start[0]) == 0 or q.shape[2] == 1):
        return _sdpa(q, keys, values, None, scale, causal=q.shape[2] > 1), state
    out = []
    for first in range(0, q.shape[2], BLOCK):
        last = min(first + BLOCK, q.shape[2])
        seen = min(int(layout.start.max()) + last, end)
        t = layout.positions[: 1 if layout.aligned else None, None, first:last, None]
        mask = torch.arange(seen, device=q.device) <= t  # [R or 1, 1, B, seen]
        block = q[:, :, first:last], keys[:, :, :seen], values[:, :, :seen]
        out.append(_sdpa(*block, mask, scale, causal=False))
    return torch.cat(out, 2), state


class _Plan:
    """The blocks of a call, and which keys each query of a block sees."""

    def __init__(
        self, layout: Layout, window: WindowConfig, dtype: torch.dtype, N: int, reach: int
    ) -> None:
        self.S, self.W, self.N, self.reach = window.sinks, window.window, N, reach
        self.dtype, self.device = dtype, layout.device
        self.least, self.most = int(layout.start.min()), int(layout.start.max())
        self.start = layout.start_on_device[: 1 if layout.aligned else None, None, None, None]
        # Far from the beginning of a document all blocks look alike, and all rows.
        self.alike: dict[tuple[int, int, bool], Tensor] = {}

    def blocks(self) -> Iterator[_Block]:
        for first in range(0, self.N, BLOCK):
            last = min(first + BLOCK, self.N)
            lowest = max(first - self.W + 1, -self.reach)
            if self.any_sink_left(last):
                yield _Block(first, last, lowest, self.S, self.sinks_and_band(first, last, lowest))
            else:
                yield _Block(first, last, lowest, 0, self.band(first, last, lowest))

    def any_sink_left(self, last: int) -> bool:
        """Whether the window of a query before slot ``last`` has left a sink behind, in any row."""
        return self.S > 0 and self.most + last > self.W

    def band(self, first: int, last: int, lowest: int) -> Tensor:
        """[1 or R, 1, B, L]: the window, over the slots ``lowest ... last - 1``."""
        key = last - first, first - lowest, False
        alike = self.least + lowest >= 0
        if alike and key in self.alike:
            return self.alike[key]
        bias = self._bias(self._visible(first, last, lowest))
        if alike:
            self.alike[key] = bias
        return bias

    def sinks_and_band(self, first: int, last: int, lowest: int) -> Tensor:
        """[1 or R, 1, B, S + L]: the sinks that the window has left, then ``band``."""
        key = last - first, first - lowest, True
        alike = self.least + first >= self.W + self.S - 1
        if alike and key in self.alike:
            return self.alike[key]
        band = self._visible(first, last, lowest)
        behind = self.start + self._slots(first, last)[:, None]
        left = behind - torch.arange(self.S, device=self.device) >= self.W
        if alike:
            left = left[:1]
        rows = max(len(left), len(band))
        parts = [x.expand(rows, -1, -1, -1) for x in (left, band)]
        bias = self._bias(torch.cat(parts, -1))
        if alike:
            self.alike[key] = bias
        return bias

    def _visible(self, first: int, last: int, lowest: int) -> Tensor:
        behind = self._slots(first, last)[:, None] - self._slots(lowest, last)
        band = ((behind >= 0) & (behind < self.W))[None, None]
        if self.least + lowest < 0:
            # Rows that began later have less history than the others.
            band = band & (self.start + self._slots(lowest, last) >= 0)
        return band

    def _bias(self, visible: Tensor) -> Tensor:
        zero = torch.zeros((), dtype=self.dtype, device=self.device)
        return torch.where(visible, zero, -torch.inf)

    def _slots(self, first: int, last: int) -> Tensor:
        return torch.arange(first, last, device=self.device)


@dataclass
class _Block:
    """Queries [first, last) and the keys in their reach, by slot; history counts from -H to -1."""

    first: int
    last: int
    lowest: int
    """Slot of the first key in reach."""
    sinks: int
    """S, or 0 where the window of no query has left a sink."""
    bias: Tensor
    """[1 or R, 1, B, sinks + L]: 0 where a query sees a key, else minus infinity."""

    def queries(self, x: Tensor, kv_heads: int) -> Tensor:
        """x [R, Q, N, ?] by the KV head that they share: [R, K, G * B, ?]."""
        return x[:, :, self.first : self.last].unflatten(1, (kv_heads, -1)).flatten(2, 3)

    def put_queries(self, x: Tensor, values: Tensor) -> None:
        """The reverse: values [R, K, G * B, ?] into x [R, Q, N, ?]."""
        B = self.last - self.first
        x[:, :, self.first : self.last] = values.unflatten(2, (-1, B)).flatten(1, 2)

    def keys(self, sinks: Tensor, old: Tensor, new: Tensor) -> Tensor:
        """Of sinks [R, K, S, ?], history [R, K, H, ?] and [R, K, N, ?]: [R, K, sinks + L, ?]."""
        # A copy even of one part: bf16 products of a slice take twice as long on a CPU.
        return torch.cat(self._parts(sinks, old, new), 2)

    def add_keys(self, sinks: Tensor, old: Tensor, new: Tensor, values: Tensor) -> None:
        """The reverse: adds values [R, K, sinks + L, ?] to the three."""
        parts = self._parts(sinks, old, new)
        pieces = values.split([part.shape[2] for part in parts], 2)
        for part, piece in zip(parts, pieces, strict=True):
            part += piece

    def _parts(self, sinks: Tensor, old: Tensor, new: Tensor) -> list[Tensor]:
        parts = [new[:, :, max(self.lowest, 0) : self.last]]
        if self.lowest < 0:
            parts.insert(0, old[:, :, old.shape[2] + self.lowest :])
        if self.sinks:
            parts.insert(0, sinks)
        return parts

    def weights(self, scale: float, q: Tensor, q_sink: Tensor, keys: Tensor) -> Tensor:
        """Softmax of the scores of ``keys``: [R, K, G * B, sinks + L]."""
        return torch.softmax(self.scores(scale, q, q_sink, keys), -1)

    def scores(self, scale: float, q: Tensor, q_sink: Tensor, keys: Tensor) -> Tensor:
        """[R, K, G * B, sinks + L], minus infinity for a key that a query does not see."""
        K, S = keys.shape[1], self.sinks
        scores = (self.queries(q, K) * scale) @ keys[:, :, S:].mT
        if S:
            left = (self.queries(q_sink, K) * scale) @ keys[:, :, :S].mT
            scores = torch.cat([left, scores], -1)
        scores.unflatten(2, (-1, self.last - self.first)).add_(self.bias[:, :, None])
        return scores


class _Blockwise(torch.autograd.Function):
    """All blocks of a call; the backward pass computes the weights anew, as FlashAttention's does.

    One function, because the alternatives cost memory: autograd would keep the weights of every
    block, and checkpoints of single blocks leave small gradients strewn between large temporaries,
    so that the heap grew by 295 MiB instead of 25 MiB for 32k tokens.
    """

    @staticmethod
    def forward(
        ctx: Any,
        plan: _Plan,
        scale: float,
        q: Tensor,
        q_sink: Tensor,
        k_sink: Tensor,
        v_sink: Tensor,
        k_old: Tensor,
        v_old: Tensor,
        k: Tensor,
        v: Tensor,
    ) -> Tensor:
        out = v.new_empty(*q.shape[:3], v.shape[3])
        for block in plan.blocks():
            weights = block.weights(scale, q, q_sink, block.keys(k_sink, k_old, k))
            block.put_queries(out, weights @ block.keys(v_sink, v_old, v))
        ctx.save_for_backward(q, q_sink, k_sink, v_sink, k_old, v_old, k, v, out)
        # The backward pass makes the masks anew: a checkpoint could not free them.
        plan.alike.clear()
        ctx.plan, ctx.scale = plan, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, q_sink, k_sink, v_sink, k_old, v_old, k, v, out = ctx.saved_tensors
        scale, K = ctx.scale, k.shape[1]
        # A key collects from (W + B) / B blocks, a sink from all.
        wide = torch.promote_types(k.dtype, torch.float32)
        to_keys = [torch.zeros_like(x, dtype=wide) for x in (k_sink, k_old, k)]
        to_values = [torch.zeros_like(x, dtype=wide) for x in (v_sink, v_old, v)]
        to_q, to_q_sink = torch.empty_like(q), torch.zeros_like(q_sink)
        for block in ctx.plan.blocks():
            keys, values = block.keys(k_sink, k_old, k), block.keys(v_sink, v_old, v)
            S = block.sinks
            block_grad = block.queries(grad, K)
            weights = block.weights(scale, q, q_sink, keys)
            block.add_keys(*to_values, weights.mT @ block_grad)
            # Through the softmax: d scores = weights * (d weights - sum of weights * d weights).
            mean = (block_grad.to(wide) * block.queries(out, K)).sum(-1, keepdim=True)
            to_scores = (block_grad @ values.mT).sub_(mean).mul_(weights).mul_(scale)
            block.put_queries(to_q, to_scores[..., S:] @ keys[:, :, S:])
            to_block_keys = to_scores[..., S:].mT @ block.queries(q, K)
            if S:
                block.put_queries(to_q_sink, to_scores[..., :S] @ keys[:, :, :S])
                to_sinks = to_scores[..., :S].mT @ block.queries(q_sink, K)
                to_block_keys = torch.cat([to_sinks, to_block_keys], 2)
            block.add_keys(*to_keys, to_block_keys)
        ctx.plan.alike.clear()
        pairs = [x.to(k.dtype) for pair in zip(to_keys, to_values, strict=True) for x in pair]
        return None, None, to_q, to_q_sink, *pairs


def _sdpa(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, causal: bool
) -> Tensor:
    """torch's attention, with features padded to what its fused CPU kernel takes."""
    E, Ev = k.shape[3], v.shape[3]
    # Unequal widths of keys and values would take the unfused path.
    q, k, v = (F.pad(x, (0, max(E, Ev) - x.shape[3])) for x in (q, k, v))
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    return out[..., :Ev]
