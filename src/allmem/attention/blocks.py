"""Both attentions block by block of queries, with torch's scaled_dot_product_attention.

A block gathers only the keys in its reach: work is O(N * (W + S)), no L x L matrix exists. Runs on every device and in every floating dtype, forward and backward.

The window part of a query is a plain sliding window over its last W tokens, sinks among them while
they are in reach. The sinks that the window has left are the other part: they are scored by another
query (``q_sink``), so that one product of queries and keys cannot serve both.

Letters: R rows, N slots of a call, Q query heads, K KV heads, E head size of keys, Ev of values,
S sinks, W window, B queries of a block, L keys in its reach, H tokens of history before the call.
"""

from __future__ import annotations

from collections.abc import Callable
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

BLOCK = 256
"""Queries of a block: B."""


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
    reach = min(window.window - 1, int(layout.start.max()))
    old_k, old_v = state.history(reach, layout, window)
    keys = _Pieces(old_k.to(k.dtype), k)
    values = _Pieces(old_v.to(v.dtype), v)
    masks = _Masks(layout, window)
    sinks: tuple[Tensor, Tensor] | None = None
    if masks.any_sink_left(q.shape[2]):
        sink_k, sink_v = state.sinks(k, v, layout, window)
        sinks = sink_k.to(k.dtype), sink_v.to(v.dtype)

    out = []
    for first in range(0, q.shape[2], BLOCK):
        last = min(first + BLOCK, q.shape[2])
        lowest = max(first - window.window + 1, -reach)
        block_q = q[:, :, first:last]
        reached = keys.from_slot(lowest, last), values.from_slot(lowest, last)
        if sinks is None or not masks.any_sink_left(last):
            attend = partial(_attend, masks.band(first, last, lowest), scale)
            out.append(_rematerialised(attend, (block_q,), *reached))
        else:
            block_q_sink = block_q if q_sink is None else q_sink[:, :, first:last]
            attend = partial(
                _attend_with_sinks,
                masks.band_and_sinks(first, last, lowest),
                masks.hidden_sinks(first, last),
                scale,
            )
            out.append(_rematerialised(attend, (block_q, block_q_sink, *sinks), *reached))
    return torch.cat(out, 2), state.write(k, v, layout, window)


def full_attention(
    q: Tensor, k: Tensor, v: Tensor, state: GrowingState, layout: Layout, *, scale: float
) -> tuple[Tensor, GrowingState]:
    """As ``allmem.attention.full_attention``."""
    state = state.append(k, v, layout)
    keys, values = state.keys.to(k.dtype), state.values.to(v.dtype)
    if layout.aligned and int(layout.start[0]) == 0:
        return _sdpa(q, keys, values, None, scale, causal=True), state
    out = []
    for first in range(0, q.shape[2], BLOCK):
        last = min(first + BLOCK, q.shape[2])
        seen = min(int(layout.start.max()) + last, keys.shape[2])
        t = layout.positions[: 1 if layout.aligned else None, None, first:last, None]
        mask = torch.arange(seen, device=q.device) <= t  # [R or 1, 1, B, seen]
        out.append(_sdpa(q[:, :, first:last], keys[:, :, :seen], values[:, :, :seen], mask, scale))
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
    """Which keys a block's queries see; true: seen. Made once for all blocks that look alike."""

    def __init__(self, layout: Layout, window: WindowConfig) -> None:
        self.S, self.W = window.sinks, window.window
        self.device = layout.device
        self.least, self.most = int(layout.start.min()), int(layout.start.max())
        self.start = layout.start_on_device[: 1 if layout.aligned else None, None, None, None]
        self.made: dict[tuple[int, ...], Tensor] = {}

    def any_sink_left(self, last: int) -> bool:
        """Whether a query before slot ``last`` of any row has a sink behind its window."""
        return self.S > 0 and self.most + last > self.W

    def band(self, first: int, last: int, lowest: int) -> Tensor:
        """[1 or R, 1, B, L]: the window, over the slots ``lowest ... last - 1``."""
        key = (last - first, first - lowest)
        if key not in self.made:
            behind = self._slots(first, last)[:, None] - self._slots(lowest, last)
            self.made[key] = ((behind >= 0) & (behind < self.W))[None, None]
        band = self.made[key]
        if self.least + lowest < 0:
            # Rows that began later have less history than the others.
            band = band & (self.start + self._slots(lowest, last) >= 0)
        return band

    def band_and_sinks(self, first: int, last: int, lowest: int) -> Tensor:
        """[1 or R, 1, B, 1 + L]: ``band`` after one column for the sinks left behind."""
        alike = self.least + lowest >= 0 and self.least + first >= self.W
        key = (last - first, first - lowest, 1)
        if alike and key in self.made:
            return self.made[key]
        band = self.band(first, last, lowest)
        some_left = self.start + self._slots(first, last)[:, None] >= self.W
        rows = max(len(band), len(some_left))
        parts = [x.expand(rows, -1, last - first, -1) for x in (some_left, band)]
        mask = torch.cat(parts, -1)
        if alike:
            self.made[key] = mask[:1]
            return self.made[key]
        return mask

    def hidden_sinks(self, first: int, last: int) -> Tensor | None:
        """[1 or R, 1, B, S]: sinks that are still in the window; ``None`` if there are none.

        Sink 0 is never hidden here: where it is still in the window ``band_and_sinks`` hides them
        all, and a softmax over nothing would not be a number.
        """
        if self.least + first >= self.W + self.S - 1:
            return None
        sink = torch.arange(self.S, device=self.device)
        behind = self.start + self._slots(first, last)[:, None] - sink
        return (behind < self.W) & (sink > 0)

    def _slots(self, first: int, last: int) -> Tensor:
        return torch.arange(first, last, device=self.device)


def _rematerialised(
    attend: Callable[..., Tensor],
    queries: tuple[Tensor, ...],
    keys: list[Tensor],
    values: list[Tensor],
) -> Tensor:
    """``attend``, keeping only its inputs for the backward pass.

    Every key lies in the reach of (W + B) / B blocks, and each would keep a joined copy of it.
    """

    def join_and_attend(*tensors: Tensor) -> Tensor:
        rest = tensors[len(queries) :]
        joined = torch.cat(rest[: len(keys)], 2), torch.cat(rest[len(keys) :], 2)
        return attend(*tensors[: len(queries)], *joined)

    tensors = (*queries, *keys, *values)
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        result: Any = checkpoint(
            join_and_attend, *tensors, use_reentrant=False, preserve_rng_state=False
        )
        return result
    return join_and_attend(*tensors)


def _attend(mask: Tensor, scale: float, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q [R, Q, B, E], k [R, K, L, E], v [R, K, L, Ev]: [R, Q, B, Ev]."""
    return _sdpa(q, k, v, mask, scale)


def _attend_with_sinks(
    mask: Tensor,
    hidden: Tensor | None,
    scale: float,
    q: Tensor,
    q_sink: Tensor,
    k_sink: Tensor,
    v_sink: Tensor,
    k: Tensor,
    v: Tensor,
) -> Tensor:
    """``_attend``, and by ``q_sink`` over k_sink [R, K, S, E] and v_sink [R, K, S, Ev].

    The S sinks are attended to apart, by plain products, and then enter the softmax over the window
    as one key whose score is their logsumexp. Queries get that score as extra features, which only
    that key has; values get an extra feature, which only that key has, and which comes out as the
    weight of the sinks. So one call of a fused kernel that knows one query per token is exact, and
    autograd needs no help.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    K = k.shape[1]
    scores = q_sink.unflatten(1, (K, -1)).to(wide) @ k_sink.to(wide).mT[:, :, None] * scale
    if hidden is not None:
        scores = scores.masked_fill(hidden[:, :, None], -torch.inf)  # [R, K, G, B, S]
    total = scores.logsumexp(-1, keepdim=True)
    sink_out = ((scores - total).exp() @ v_sink.to(wide)[:, :, None]).flatten(1, 2)  # [R, Q, B, Ev]

    # Half precision holds a logsumexp to 8 or 11 bits: three numbers hold what one cannot, and the
    # kernel adds them up in fp32.
    rest = (total / scale).flatten(1, 2)
    parts = []
    for _ in range(1 if q.dtype == wide else 3):
        parts.append(rest.to(q.dtype))
        rest = rest - parts[-1]
    q = torch.cat([q, *parts], -1)
    k = F.pad(k, (0, len(parts), 1, 0))
    k[:, :, 0, -len(parts) :] = 1
    v = F.pad(v, (0, 1, 1, 0))
    v[:, :, 0, -1] = 1
    out = _sdpa(q, k, v, mask, scale)  # [R, Q, B, Ev + 1]
    return out[..., :-1] + (out[..., -1:] * sink_out).to(q.dtype)


def _sdpa(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, causal: bool = False
) -> Tensor:
    """torch's attention, with features padded to what its fused CPU kernel takes."""
    E, Ev = k.shape[3], v.shape[3]
    # Unequal widths of keys and values would send it to the unfused path; a multiple of 8 to the
    # vector width costs less than it saves.
    width = E if E == Ev else -(-max(E, Ev) // 8) * 8
    q, k, v = (F.pad(x, (0, width - x.shape[3])) for x in (q, k, v))
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    return out[..., :Ev]
