"""Both attentions by torch's flex_attention: one fused call over all queries, whatever the mask.

Meant for GPUs, where it is compiled once and where no L x L matrix exists, not even of the mask:
which tiles hold visible keys is known in closed form. On a CPU it runs unfused and forward alone,
so that tests reach it.

The sinks that the window has left are a second call, with the re-positioned queries; the logsumexp
of both joins them. A query always sees itself through the window, so only the sinks can be empty.

Letters: R rows, N slots of a call, Q query heads, K KV heads, E head size of keys, Ev of values,
S sinks, W window, H tokens of history before the call, M keys of a growing state.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from allmem.attention.state import GrowingState, RingState
from allmem.config import WindowConfig
from allmem.layout import Layout

__all__ = ["cannot_run", "full_attention", "window_attention"]

TILE = 128
"""Queries and keys of a tile of the mask, and the multiple that lengths are padded to."""

COMPILATIONS = 64
"""Compiled variants allowed (dtype, gradients, head sizes, ...); torch's own limit is 8, and beyond
it torch runs unfused, in quadratic memory."""

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def cannot_run(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """Why this backend cannot compute a call with such tensors; ``None`` if it can."""
    if q.device.type == "cpu":
        if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
            return "flex_attention has no backward pass on a CPU"
        return None
    if q.device.type != "cuda":
        return f"flex_attention is not compiled for {q.device.type} devices here"
    if q.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"flex_attention has no GPU kernel for {q.dtype}"
    sizes = k.shape[3], v.shape[3]
    if min(sizes) < 16 or max(sizes) > 256:
        return f"flex_attention has no GPU kernel for heads of {sizes}"
    return None


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
    S, W, N = window.sinks, window.window, q.shape[2]
    reach = min(W - 1, int(layout.start.max()))
    # History takes all of W or nothing, so that its length does not change from call to call.
    H = _padded(W - 1) if reach else 0
    old_k, old_v = state.history(reach, layout, window)
    keys = torch.cat([F.pad(old_k.to(k.dtype), (0, 0, H - reach, 0)), k], 2)
    values = torch.cat([F.pad(old_v.to(v.dtype), (0, 0, H - reach, 0)), v], 2)
    out, lse = _attend(q, keys, values, _window_mask(layout, N, H, W), scale)
    if S > 0 and int(layout.start.max()) + N > W:
        q_sink = q if q_sink is None else q_sink
        sink_k, sink_v = state.sinks(k, v, layout, window)
        mask = _left_sinks_mask(layout, N, S, W)
        sink_out, sink_lse = _attend(q_sink, sink_k.to(k.dtype), sink_v.to(v.dtype), mask, scale)
        # A sigmoid of the difference, since it and its derivative are 0 where no sink was left
        # behind and `sink_lse` is minus infinity.
        share = torch.sigmoid(sink_lse - lse)[..., None]
        out = (out + share * (sink_out - out)).to(q.dtype)
    return out, state.write(k, v, layout, window)


def full_attention(
    q: Tensor, k: Tensor, v: Tensor, state: GrowingState, layout: Layout, *, scale: float
) -> tuple[Tensor, GrowingState]:
    """As ``allmem.attention.full_attention``."""
    state = state.append(k, v, layout)
    keys, values = state.keys.to(k.dtype), state.values.to(v.dtype)
    mask = _causal_mask(layout, q.shape[2], keys.shape[2])
    return _attend(q, keys, values, mask, scale)[0], state


def _once_per_layout(make: Callable[..., BlockMask]) -> Callable[..., BlockMask]:
    """Layers share a layout and so their masks; a layout takes its masks along when it goes."""
    made: WeakKeyDictionary[Layout, dict[tuple[int, ...], BlockMask]] = WeakKeyDictionary()

    @functools.wraps(make)
    def once(layout: Layout, *sizes: int) -> BlockMask:
        masks = made.setdefault(layout, {})
        if sizes not in masks:
            masks[sizes] = make(layout, *sizes)
        return masks[sizes]

    return once


@_once_per_layout
def _window_mask(layout: Layout, N: int, H: int, W: int) -> BlockMask:
    """Queries [N] over keys [H + N]: the last W tokens that the row has."""
    start = layout.start_on_device
    width, before = _scalar(W, layout), _scalar(H, layout)

    def visible(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        slot = kv - before
        return (slot <= q) & (q - slot < width) & (start[b] + slot >= 0)

    (q_low, q_high), (k_low, k_high) = _query_tiles(N, layout), _key_tiles(H + N, layout, -H)
    has_begun = start[:, None, None]
    some = (k_low <= q_high) & (q_low - k_high < W) & (has_begun + k_high >= 0)
    all_ = (k_high <= q_low) & (q_high - k_low < W) & (has_begun + k_low >= 0)
    return _block_mask(some, all_, visible, (_padded(N), _padded(H + N)))


@_once_per_layout
def _left_sinks_mask(layout: Layout, N: int, S: int, W: int) -> BlockMask:
    """Queries [N] over keys [S]: the sinks that have left the window."""
    start = layout.start_on_device
    width, sinks = _scalar(W, layout), _scalar(S, layout)

    def visible(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        return (start[b] + q - kv >= width) & (kv < sinks)

    (q_low, q_high), (k_low, k_high) = _query_tiles(N, layout), _key_tiles(S, layout)
    first = start[:, None, None]
    some = first + q_high - k_low >= W
    all_ = (first + q_low - k_high >= W) & (k_high < S)
    return _block_mask(some, all_, visible, (_padded(N), _padded(S)))


@_once_per_layout
def _causal_mask(layout: Layout, N: int, M: int) -> BlockMask:
    """Queries [N] over keys [M] that lie at their positions."""
    start = layout.start_on_device

    def visible(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        return kv <= start[b] + q

    (q_low, q_high), (k_low, k_high) = _query_tiles(N, layout), _key_tiles(M, layout)
    first = start[:, None, None]
    sizes = _padded(N), _padded(M)
    return _block_mask(k_low <= first + q_high, k_high <= first + q_low, visible, sizes)


def _query_tiles(length: int, layout: Layout) -> tuple[Tensor, Tensor]:
    """First and last slot of every tile of queries, each [tiles, 1]."""
    low = torch.arange(0, _padded(length), TILE, device=layout.device)[:, None]
    return low, low + TILE - 1


def _key_tiles(length: int, layout: Layout, first: int = 0) -> tuple[Tensor, Tensor]:
    """First and last index of every tile of keys, counted from ``first``, each [tiles]."""
    low = torch.arange(first, first + _padded(length), TILE, device=layout.device)
    return low, low + TILE - 1


def _block_mask(some: Tensor, all_: Tensor, visible: MaskMod, sizes: tuple[int, int]) -> BlockMask:
    """From the tiles [R, N / TILE, L / TILE] where some key may be, and where all are, visible."""
    partial, full = (some & ~all_)[:, None], all_[:, None]

    def listed(tiles: Tensor) -> tuple[Tensor, Tensor]:
        order = tiles.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
        return tiles.sum(-1).to(torch.int32), order.to(torch.int32)

    return BlockMask.from_kv_blocks(
        *listed(partial), *listed(full), BLOCK_SIZE=TILE, mask_mod=visible, seq_lengths=sizes
    )


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, scale: float
) -> tuple[Tensor, Tensor]:
    """q [R, Q, N, E], k [R, K, L, E], v [R, K, L, Ev]: [R, Q, N, Ev] and logsumexp [R, Q, N]."""
    N = q.shape[2]
    q, k, v = (F.pad(x, (0, 0, 0, _padded(x.shape[2]) - x.shape[2])) for x in (q, k, v))
    out, aux = _runner(q.device.type)(
        q,
        k,
        v,
        block_mask=mask,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
        return_aux=AuxRequest(lse=True),
    )
    return out[:, :, :N], aux.lse[:, :, :N]


@functools.cache
def _runner(device: str) -> Callable[..., Any]:
    """flex_attention for a device, compiled for GPUs at the first call."""
    # `fullgraph`: an error, not the unfused fallback, if it ever cannot be compiled.
    run = torch.compile(flex_attention, fullgraph=True) if device == "cuda" else flex_attention

    def limited(*args: Any, **kwargs: Any) -> Any:
        with torch._dynamo.config.patch(recompile_limit=COMPILATIONS), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
            return run(*args, **kwargs)

    return limited


def _padded(length: int) -> int:
    return -(-length // TILE) * TILE


def _scalar(value: int, layout: Layout) -> Tensor:
    # As a tensor, because a new whole number in a mask would be compiled anew.
    return torch.full((), value, device=layout.device)
