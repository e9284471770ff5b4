"""Both attentions block by block of queries, by plain torch operations.

A block gathers only the keys in its reach: work is O(N * (W + S)) and no L x L matrix exists. Runs
on every device and in every floating dtype, forward and backward.

The window part of a query is a plain sliding window over its last W tokens, sinks among them while
they are in reach. The sinks that the window has left are scored by another query, ``q_sink``.

Letters: R rows, N slots of a call, Q query heads, K KV heads, G = Q / K, E head size of keys, Ev of
values, S sinks, W window, B queries of a block, L keys in its reach, H tokens of history.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from allmem.attention.state import GrowingState, RingState
from allmem.config import WindowConfig
from allmem.layout import Layout

__all__ = ["BLOCK", "full_attention", "window_attention"]

BLOCK = 128
"""Queries of a block: B.

Measured on one core with AVX512-BF16, milliseconds for 4096 queries with 9 query and 3 KV heads of
64, W = 512, S = 4, forward / forward and backward:

    B                     64           128          256
    fp32              94 / 755     98 / 447    123 / 587
    bf16              64 / 369     60 / 278     66 / 262

With W = 4096, S = 128 and heads of 128 the three are within a tenth of one another. The fused
``scaled_dot_product_attention``, where the sinks entered as one more key that carried their
logsumexp (doubled features cost twice the products), took, at its best B = 256,
129 / 610 in fp32 and 138 / 595 in bf16.
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
    old_k, old_v = state.history(reach, layout, window)
    keys, values = _Pieces(old_k.to(k.dtype), k), _Pieces(old_v.to(v.dtype), v)
    masks = _Masks(layout, window, q.dtype)
    if masks.any_sink_left(q.shape[2]):
        sink_k, sink_v = (x.to(k.dtype) for x in state.sinks(k, v, layout, window))

    out = []
    for first in range(0, q.shape[2], BLOCK):
        last = min(first + BLOCK, q.shape[2])
        lowest = max(first - window.window + 1, -reach)
        reached = keys.from_slot(lowest, last), values.from_slot(lowest, last)
        block_q = q[:, :, first:last]
        if masks.any_sink_left(last):
            bias = masks.sinks_and_band(first, last, lowest)
            block_q_sink = block_q if q_sink is None else q_sink[:, :, first:last]
            out.append(_attend(bias, scale, block_q, *reached, (block_q_sink, sink_k, sink_v)))
        else:
            out.append(_attend(masks.band(first, last, lowest), scale, block_q, *reached))
    return torch.cat(out, 2), state.write(k, v, layout, window)


def full_attention(
    q: Tensor, k: Tensor, v: Tensor, state: GrowingState, layout: Layout, *, scale: float
) -> tuple[Tensor, GrowingState]:
    """As ``allmem.attention.full_attention``."""
    state = state.append(k, v, layout)
    keys, values = state.keys.to(k.dtype), state.values.to(v.dtype)
    if layout.aligned and (int(layout.start[0]) == 0 or q.shape[2] == 1):
        return _sdpa(q, keys, values, None, scale, causal=q.shape[2] > 1), state
    out = []
    for first in range(0, q.shape[2], BLOCK):
        last = min(first + BLOCK, q.shape[2])
        seen = min(int(layout.start.max()) + last, keys.shape[2])
        t = layout.positions[: 1 if layout.aligned else None, None, first:last, None]
        mask = torch.arange(seen, device=q.device) <= t  # [R or 1, 1, B, seen]
        block = q[:, :, first:last], keys[:, :, :seen], values[:, :, :seen]
        out.append(_sdpa(*block, mask, scale, causal=False))
    return torch.cat(out, 2), state


class _Pieces:
    """History and new tokens, cut at the block borders; slots before the call count from -H.

    The backward pass of a slice fills a tensor as large as the whole. Cutting once and joining the
    pieces that a block needs keeps the backward pass linear.
    """

    def __init__(self, history: Tensor, new: Tensor) -> None:
        self.history = history
        self.blocks = new.split(BLOCK, 2)

    def from_slot(self, lowest: int, last: int) -> list[Tensor]:
        """Pieces that cover the slots ``lowest ... last - 1``, in order; ``last`` ends a block."""
        pieces = []
        if lowest < 0:
            pieces.append(self.history[:, :, self.history.shape[2] + lowest :])
        begin = max(lowest, 0) // BLOCK
        pieces += self.blocks[begin : -(-last // BLOCK)]
        skip = max(lowest, 0) - begin * BLOCK
        if skip:
            pieces[0] = pieces[0][:, :, skip:]
        return pieces


class _Masks:
    """What a block adds to its scores: 0 where a query sees a key, else minus infinity."""

    def __init__(self, layout: Layout, window: WindowConfig, dtype: torch.dtype) -> None:
        self.S, self.W = window.sinks, window.window
        self.dtype, self.device = dtype, layout.device
        self.least, self.most = int(layout.start.min()), int(layout.start.max())
        self.start = layout.start_on_device[: 1 if layout.aligned else None, None, None, None]
        # Far from the beginning of a document all blocks look alike, and all rows.
        self.alike: dict[tuple[int, int, bool], Tensor] = {}

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


def _attend(
    bias: Tensor,
    scale: float,
    q: Tensor,
    keys: list[Tensor],
    values: list[Tensor],
    sinks: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Tensor:
    """One block: q [R, Q, B, E], pieces of [R, K, L, E] and [R, K, L, Ev]: [R, Q, B, Ev].

    ``sinks`` are q_sink [R, Q, B, E], their keys [R, K, S, E] and values [R, K, S, Ev].

    The backward pass computes the block anew: its scores, and the joined copy of the keys, of which
    every key is part in (W + B) / B blocks, would be far larger than its inputs.
    """
    tensors = (q, *keys, *values, *(sinks or ()))
    compute = partial(_softmax_average, bias, scale, len(keys))
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        result: Any = checkpoint(compute, *tensors, use_reentrant=False, preserve_rng_state=False)
        return result
    return compute(*tensors)


def _softmax_average(bias: Tensor, scale: float, pieces: int, q: Tensor, *rest: Tensor) -> Tensor:
    """``_attend`` on tensors in a row, as a checkpoint takes them."""
    keys, values, sinks = rest[:pieces], rest[pieces : 2 * pieces], rest[2 * pieces :]
    K, B = keys[0].shape[1], q.shape[2]
    scores = _grouped(q, K, scale) @ torch.cat(keys, 2).mT  # [R, K, G * B, L]
    if sinks:
        q_sink, k_sink, v_sink = sinks
        scores = torch.cat([_grouped(q_sink, K, scale) @ k_sink.mT, scores], -1)
        values = (v_sink, *values)
    scores.unflatten(2, (-1, B)).add_(bias[:, :, None])
    weights = torch.softmax(scores, -1)
    return (weights @ torch.cat(values, 2)).unflatten(2, (-1, B)).flatten(1, 2)


def _grouped(q: Tensor, kv_heads: int, scale: float) -> Tensor:
    """Scaled queries [R, Q, B, E] by the KV head that they share: [R, K, G * B, E]."""
    return (q * scale).unflatten(1, (kv_heads, -1)).flatten(2, 3)


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
