"""One token for every row over a ring of keys and values, bound by memory alone.

A row has few heads and its keys are many, so the ring is split (flash-decoding): a program owns
some slots of one KV head, goes over them in blocks for all query heads that share them, and leaves
its part of the softmax; a second kernel joins the parts, always in the same order. The splits are
those of the ring's size, so a row gets the same bits whoever is read beside it.

The program that owns the token's slot writes it, and no program waits for it: all take the token's
key and value from the arguments. Slots fill from the first to the last, so what lies beyond
``start`` is not even loaded.

For Qwen3-0.6B (Q = 16, K = 8, E = 128, S = 128, W = 4096, bf16, one row) the ring is read once:
17.3 MB, 5.2 us of an H100's 3.35 TB/s, by 136 programs.

Letters: R rows, P slots of a pool, Q query heads, K KV heads, G = Q / K, E head size of keys, Ev of
values, S sinks, W window, L = S + W slots of a ring; a *unit* is one KV head of one row.
"""

# Triton reads the annotations of kernels itself: only ``tl.constexpr`` means anything to it.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from allmem.config import WindowConfig
from allmem.kernels import interpreted

__all__ = ["window_token"]

SPLIT = 256
"""Slots of a program: a row of Qwen3-0.6B has one for each of an H100's 132 multiprocessors."""
SMALLEST = 16
"""Rows and columns of a product of tiles, at least."""
BLOCK_BYTES = 16 * 1024
"""Of keys, or of values, in bf16, that a program loads at a time: with those that are under way it
stays below the 99 KB of shared memory that the smallest GPUs give to a program."""
JOINED = 16
"""Parts that are added up at a time."""


@triton.jit
def _load_heads(x, strides, row, heads, columns, keep, SIZE: tl.constexpr):
    """x[row, heads, 0, columns] of [R, Q, 1, SIZE], zero beyond it."""
    there = x + row * strides[0] + heads[:, None] * strides[1] + columns[None, :] * strides[3]
    return tl.load(there, mask=keep[:, None] & (columns < SIZE)[None, :], other=0.0)


@triton.jit
def _load_token(x, strides, row, head, columns, SIZE: tl.constexpr):
    """x[row, head, 0, columns] of [R, K, 1, SIZE], zero beyond it."""
    there = x + row * strides[0] + head * strides[1] + columns * strides[3]
    return tl.load(there, mask=columns < SIZE, other=0.0)


@triton.jit
def _ring_block(ring, slots, last, token, own, columns, SIZE: tl.constexpr):
    """ring[slots, columns] up to slot ``last``, zero beyond it, with the token in its own slot."""
    keep = (slots <= last)[:, None] & (columns < SIZE)[None, :]
    block = tl.load(ring + slots[:, None] * SIZE + columns[None, :], mask=keep, other=0.0)
    return tl.where((slots == own)[:, None], token.to(block.dtype)[None, :], block)


@triton.jit
def _product(x, y, zero, OPERANDS: tl.constexpr):
    """x y, added up in the dtype of ``zero``."""
    return tl.dot(
        x.to(OPERANDS), y.to(OPERANDS), zero, input_precision="ieee", out_dtype=zero.dtype
    )


@triton.jit
def _part_kernel(
    q, q_strides, q_sink, q_sink_strides, k, k_strides, v, v_strides,
    keys, values, start, slots, reads, peaks, masses,
    K: tl.constexpr, G: tl.constexpr, SIZE: tl.constexpr, V_SIZE: tl.constexpr,
    SINKS: tl.constexpr, WINDOW: tl.constexpr, SCALE: tl.constexpr,
    SPLITS: tl.constexpr, SPLIT: tl.constexpr, BLOCK: tl.constexpr, G_BLOCK: tl.constexpr,
    E_BLOCK: tl.constexpr, V_BLOCK: tl.constexpr,
    ACC: tl.constexpr, OPERANDS: tl.constexpr,
):  # fmt: skip
    """Writes the token, and reads one split of one unit's ring.

    Leaves ``peaks`` [R Q, SPLITS], the largest score; ``masses``, the sum of exp(score - peak); and
    ``reads`` [R Q, SPLITS, Ev], that of the values by the same weights: -inf, 0 and 0 of a split
    without a token.
    """
    unit = tl.program_id(0) // SPLITS
    split = tl.program_id(0) % SPLITS
    row, head = (unit // K).to(tl.int64), (unit % K).to(tl.int64)
    columns, v_columns = tl.arange(0, E_BLOCK), tl.arange(0, V_BLOCK)
    group = tl.arange(0, G_BLOCK)
    heads, shared = head * G + group, group < G

    place = row
    if slots is not None:
        place = tl.load(slots + row)
    ring = (place * K + head) * (SINKS + WINDOW)
    key_ring, value_ring = keys + ring * SIZE, values + ring * V_SIZE
    position = tl.load(start + row)
    own = position
    if position >= SINKS:
        own = SINKS + (position - SINKS) % WINDOW
    key = _load_token(k, k_strides, row, head, columns, SIZE)
    value = _load_token(v, v_strides, row, head, v_columns, V_SIZE)
    first = split * SPLIT
    if (own >= first) & (own < first + SPLIT):
        tl.store(key_ring + own * SIZE + columns, key, mask=columns < SIZE)
        tl.store(value_ring + own * V_SIZE + v_columns, value, mask=v_columns < V_SIZE)

    near = _load_heads(q, q_strides, row, heads, columns, shared, SIZE)
    far = near
    if q_sink is not None:
        far = _load_heads(q_sink, q_sink_strides, row, heads, columns, shared, SIZE)
    read = tl.zeros([G_BLOCK, V_BLOCK], ACC)
    peak = tl.full([G_BLOCK], float("-inf"), ACC)
    mass = tl.zeros([G_BLOCK], ACC)
    zero = tl.zeros([G_BLOCK, BLOCK], ACC)
    last = tl.minimum(position, SINKS + WINDOW - 1).to(tl.int32)
    # A block that is gone over has a token in its first slot, so its largest score is a number.
    for begin in range(first, tl.minimum(first + SPLIT, last + 1), BLOCK):
        there = begin + tl.arange(0, BLOCK)
        block = _ring_block(key_ring, there, last, key, own, columns, SIZE)
        scores = _product(near, tl.trans(block), zero, OPERANDS)
        if q_sink is not None:
            if begin < SINKS:
                of_sinks = _product(far, tl.trans(block), zero, OPERANDS)
                scores = tl.where((there < SINKS)[None, :], of_sinks, scores)
        scores = tl.where((there <= last)[None, :], scores * SCALE, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, 1))
        shrink = tl.exp(peak - higher)
        weights = tl.exp(scores - higher[:, None])
        block = _ring_block(value_ring, there, last, value, own, v_columns, V_SIZE)
        read = _product(weights, block, read * shrink[:, None], OPERANDS)
        mass = mass * shrink + tl.sum(weights, 1)
        peak = higher
    part = (row * (K * G) + heads) * SPLITS + split
    tl.store(peaks + part, peak, mask=shared)
    tl.store(masses + part, mass, mask=shared)
    keep = shared[:, None] & (v_columns < V_SIZE)[None, :]
    tl.store(reads + part[:, None] * V_SIZE + v_columns[None, :], read, mask=keep)


@triton.jit
def _join_kernel(
    reads, peaks, masses, out,
    V_SIZE: tl.constexpr, SPLITS: tl.constexpr,
    SPLITS_BLOCK: tl.constexpr, JOINED: tl.constexpr, V_BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """out [R Q, Ev] of one query head, from the parts of all splits."""
    of_head = tl.program_id(0).to(tl.int64) * SPLITS
    columns = tl.arange(0, V_BLOCK)
    each = tl.arange(0, SPLITS_BLOCK)
    peak = tl.load(peaks + of_head + each, mask=each < SPLITS, other=float("-inf"))
    highest = tl.max(peak, 0)
    mass = tl.load(masses + of_head + each, mask=each < SPLITS, other=0.0)
    total = tl.sum(mass * tl.exp(peak - highest), 0)
    read = tl.zeros([V_BLOCK], ACC)
    for first in range(0, SPLITS, JOINED):
        some = first + tl.arange(0, JOINED)
        own = tl.load(peaks + of_head + some, mask=some < SPLITS, other=float("-inf"))
        there = (of_head + some)[:, None] * V_SIZE + columns[None, :]
        keep = (some < SPLITS)[:, None] & (columns < V_SIZE)[None, :]
        part = tl.load(reads + there, mask=keep, other=0.0)
        read += tl.sum(part * tl.exp(own - highest)[:, None], 0)
    out += tl.program_id(0).to(tl.int64) * V_SIZE
    tl.store(out + columns, read / total, mask=columns < V_SIZE)


def window_token(
    q: Tensor,
    q_sink: Tensor | None,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    start: Tensor,
    slots: Tensor | None,
    window: WindowConfig,
    scale: float,
) -> Tensor:
    """Write one token of every row into its ring, and read the ring.

    Args:
        q, q_sink: [R, Q, 1, E]; sinks are scored by the second, or as all others if ``None``.
        k: [R, K, 1, E].
        v: [R, K, 1, Ev].
        keys: [R or P, K, S + W, E], contiguous; written in place, as ``values`` [.., Ev].
        start: [R] int64, device: tokens that each row has read.
        slots: [R] int64, device: whose keys and values are a row's, if they are those of a pool.
        window: S and W.
        scale: factor on the scores.

    Returns:
        [R, Q, 1, Ev] in the dtype of v.
    """
    R, Q, _, E = q.shape
    K, L, Ev = values.shape[1:]
    out = torch.empty(R, Q, 1, Ev, dtype=v.dtype, device=q.device)
    if not out.numel():
        return out
    splits = triton.cdiv(L, SPLIT)
    wide = torch.promote_types(keys.dtype, torch.float32)
    acc = tl.float64 if wide == torch.float64 else tl.float32
    narrow = keys.dtype == torch.bfloat16
    e_block, v_block = (max(SMALLEST, triton.next_power_of_2(size)) for size in (E, Ev))
    # Products of full precision are not for tensor cores: threads hold what they multiply.
    most = 64 if narrow else SMALLEST
    block = max(SMALLEST, min(most, BLOCK_BYTES // (2 * max(e_block, v_block))))
    reads = torch.empty(R, Q, splits, Ev, dtype=wide, device=q.device)
    peaks, masses = (torch.empty(R, Q, splits, dtype=wide, device=q.device) for _ in range(2))
    with torch.cuda.device_of(q):
        _part_kernel[(R * K * splits,)](
            *(q, q.stride(), q_sink, None if q_sink is None else q_sink.stride()),
            *(k, k.stride(), v, v.stride(), keys, values, start, slots),
            *(reads, peaks, masses),
            K=K,
            G=Q // K,
            SIZE=E,
            V_SIZE=Ev,
            SINKS=window.sinks,
            WINDOW=window.window,
            SCALE=scale,
            SPLITS=splits,
            SPLIT=SPLIT,
            BLOCK=block,
            G_BLOCK=max(SMALLEST, triton.next_power_of_2(Q // K)),
            E_BLOCK=e_block,
            V_BLOCK=v_block,
            ACC=acc,
            # The interpreter multiplies the bits of bf16 numbers as if they were integers.
            OPERANDS=tl.bfloat16 if narrow and not interpreted() else acc,
            num_warps=4 if narrow else 8,
        )
        _join_kernel[(R * Q,)](
            *(reads, peaks, masses, out),
            V_SIZE=Ev,
            SPLITS=splits,
            SPLITS_BLOCK=triton.next_power_of_2(splits),
            JOINED=JOINED,
            V_BLOCK=v_block,
            ACC=acc,
        )
    return out
