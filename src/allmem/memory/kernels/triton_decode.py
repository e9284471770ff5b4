"""A few tokens: read, and gradients added to the running sums in place, bound by memory alone.

Products of tiles need sixteen rows, so these are sums over the weights' rows, in the dtype of the
weights. A program owns a block of the width of one unit: rows of gate and up, columns of down. It
loads them once for all queries and keys, and with them come the norms of the rows.

What a unit's programs have to tell one another, the output and the norms of down's rows, goes
through memory, in parts that every program adds up in the same order: so there are two kernels,
without atomics. The second goes back: it loads down and the sums, adds, and stores the sums.

For Qwen3-0.6B (H = 8, d = h = 128, fp32 state, one row and token) gate and up are loaded once, down
twice, sums loaded and stored once: 5.2 MB, 1.6 us of an H100's 3.35 TB/s, and 64 programs. Its
2.6 MFLOP do not count.

Weights and sums may be those of a pool of rows: then a row's are at its slot, and all that lies
between the two kernels at the row itself.

Letters: R rows, P slots, H memory heads, N tokens, d head size, h width; a *unit* is one head of
one row, its *place* that of its matrices among those of all slots.
"""

# Triton reads the annotations of kernels itself: only ``tl.constexpr`` means anything to it.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from allmem.memory.inner_loop import SMALLEST_NORM
from allmem.memory.kernels.tiles import power_of_two, require_contiguous
from allmem.memory.kernels.triton_step import accumulator, place_of, sigmoid
from allmem.memory.network import MemoryNetwork
from allmem.memory.state import FastWeights

__all__ = ["decode_step"]

BLOCK = 16
"""Of the width, or of the outputs of a linear network: small, since one row has few units."""
NARROW = 128
"""Up to which d four warps hold the blocks of a program."""


@triton.jit
def _here(slots, blocks, heads, BLOCK: tl.constexpr):
    """The unit of this program, its place, its row and head, and what it owns [BLOCK]."""
    program = tl.program_id(0)
    unit = (program // blocks).to(tl.int64)
    inner = program % blocks * BLOCK + tl.arange(0, BLOCK)
    return unit, place_of(slots, unit, heads), unit // heads, unit % heads, inner


@triton.jit
def _load_token(x, strides, row, head, token, columns, SIZE: tl.constexpr, ACC: tl.constexpr):
    """x[row, head, token, columns] of [R, H, N, SIZE], zero beyond it."""
    start = x + row * strides[0] + head * strides[1] + token * strides[2]
    offsets = columns.to(tl.int64) * strides[3]
    return tl.load(start + offsets, mask=columns < SIZE, other=0.0).to(ACC)


@triton.jit
def _load_rate(eta, strides, row, head, token, matrix: tl.constexpr, ACC: tl.constexpr):
    """eta[row, head, token, matrix]."""
    start = eta + row * strides[0] + head * strides[1]
    return tl.load(start + token * strides[2] + matrix * strides[3]).to(ACC)


@triton.jit
def _block(x, place, outs, ins, OUT: tl.constexpr, IN: tl.constexpr):
    """Where x[place, outs, ins] of a contiguous [P H, OUT, IN] is, and what of it is."""
    keep = (outs < OUT)[:, None] & (ins < IN)[None, :]
    return x + place * (OUT * IN) + outs[:, None] * IN + ins[None, :], keep


@triton.jit
def _row_scale(target, squares, head, outs, OUT: tl.constexpr, TINY: tl.constexpr):
    """target[head, outs] over the norm of the rows; one where no norm is set."""
    if target is None:
        scale = tl.full(squares.shape, 1, squares.dtype)
    else:
        wanted = tl.load(target + head * OUT + outs, mask=outs < OUT, other=0.0).to(squares.dtype)
        scale = wanted / tl.maximum(tl.sqrt(squares), TINY)
    return scale


@triton.jit
def _forward_kernel(
    q, q_strides, k, k_strides, gate, up, down, gate_target, up_target,
    of_keys, parts, squares,
    slots, heads, units, blocks,
    D: tl.constexpr, WIDTH: tl.constexpr, TOKENS: tl.constexpr, NORM_DOWN: tl.constexpr,
    D_BLOCK: tl.constexpr, BLOCK: tl.constexpr, TINY: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """From one block of the width: F' k, and its part of what queries and keys read.

    Leaves ``of_keys`` [2, R H, N, h], F'_gate k and F'_up k; ``parts`` [2, R H, blocks, N, d], of
    F_down phi for queries and keys; ``squares`` [R H, blocks, d], of down's rows.
    """
    unit, place, row, head, inner = _here(slots, blocks, heads, BLOCK)
    block = tl.program_id(0) % blocks
    columns = tl.arange(0, D_BLOCK)
    here, keep = _block(gate, place, inner, columns, WIDTH, D)
    gate_rows = tl.load(here, mask=keep, other=0.0).to(ACC)
    here, keep = _block(up, place, inner, columns, WIDTH, D)
    up_rows = tl.load(here, mask=keep, other=0.0).to(ACC)
    here, keep = _block(down, place, columns, inner, D, WIDTH)
    down_columns = tl.load(here, mask=keep, other=0.0).to(ACC)
    gate_scale = _row_scale(gate_target, tl.sum(gate_rows * gate_rows, 1), head, inner, WIDTH, TINY)
    up_scale = _row_scale(up_target, tl.sum(up_rows * up_rows, 1), head, inner, WIDTH, TINY)
    if NORM_DOWN:
        own = tl.sum(down_columns * down_columns, 1)
        tl.store(squares + (unit * blocks + block) * D + columns, own, mask=columns < D)
    for token in range(TOKENS):
        query = _load_token(q, q_strides, row, head, token, columns, D, ACC)[None, :]
        a = tl.sum(gate_rows * query, 1)
        hidden = a * sigmoid(a) * tl.sum(up_rows * query, 1)
        part = tl.sum(down_columns * hidden[None, :], 1)
        there = (unit * blocks + block) * TOKENS + token
        tl.store(parts + there * D + columns, part, mask=columns < D)
        key = _load_token(k, k_strides, row, head, token, columns, D, ACC)[None, :]
        a = tl.sum(gate_rows * key, 1) * gate_scale
        b = tl.sum(up_rows * key, 1) * up_scale
        there = unit * TOKENS + token
        tl.store(of_keys + there * WIDTH + inner, a, mask=inner < WIDTH)
        there = (units + unit) * TOKENS + token
        tl.store(of_keys + there * WIDTH + inner, b, mask=inner < WIDTH)
        part = tl.sum(down_columns * (a * sigmoid(a) * b)[None, :], 1)
        there = ((units + unit) * blocks + block) * TOKENS + token
        tl.store(parts + there * D + columns, part, mask=columns < D)


@triton.jit
def _sum_of_parts(parts, unit, token, blocks, columns, D: tl.constexpr, TOKENS: tl.constexpr,
                  BLOCKS: tl.constexpr):  # fmt: skip
    """Over the blocks, parts[unit, :, token, columns] of [.., blocks, TOKENS, D]."""
    each = tl.arange(0, BLOCKS)
    there = ((unit * blocks + each) * TOKENS + token)[:, None] * D + columns[None, :]
    keep = (each < blocks)[:, None] & (columns < D)[None, :]
    return tl.sum(tl.load(parts + there, mask=keep, other=0.0), 0)


@triton.jit
def _backward_kernel(
    q, q_strides, k, k_strides, v, v_strides, eta, eta_strides,
    down, down_target, of_keys, parts, squares, gate_sum, up_sum, down_sum, read,
    slots, heads, units, blocks,
    D: tl.constexpr, WIDTH: tl.constexpr, TOKENS: tl.constexpr, RESIDUAL: tl.constexpr,
    DOT_LOSS: tl.constexpr,
    D_BLOCK: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
    TINY: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Adds the gradients of one block of the width to the sums; the first block of a unit stores
    what was read."""
    unit, place, row, head, inner = _here(slots, blocks, heads, BLOCK)
    columns = tl.arange(0, D_BLOCK)
    here, keep = _block(down, place, columns, inner, D, WIDTH)
    down_columns = tl.load(here, mask=keep, other=0.0).to(ACC)
    across, keep_across = _block(down_sum, place, columns, inner, D, WIDTH)
    down_total = tl.load(across, mask=keep_across, other=0.0)
    gate_rows, keep_rows = _block(gate_sum, place, inner, columns, WIDTH, D)
    gate_total = tl.load(gate_rows, mask=keep_rows, other=0.0)
    up_rows, keep_rows = _block(up_sum, place, inner, columns, WIDTH, D)
    up_total = tl.load(up_rows, mask=keep_rows, other=0.0)
    down_scale = tl.full([D_BLOCK], 1, ACC)
    if down_target is not None:
        norms = _sum_of_parts(squares, unit, 0, blocks, columns, D, 1, BLOCKS)
        down_scale = _row_scale(down_target, norms, head, columns, D, TINY)
    for token in range(TOKENS):
        if tl.program_id(0) % blocks == 0:
            y = _sum_of_parts(parts, unit, token, blocks, columns, D, TOKENS, BLOCKS)
            if RESIDUAL:
                y += _load_token(q, q_strides, row, head, token, columns, D, ACC)
            tl.store(read + (unit * TOKENS + token) * D + columns, y, mask=columns < D)
        key = _load_token(k, k_strides, row, head, token, columns, D, ACC)
        error = -_load_token(v, v_strides, row, head, token, columns, D, ACC)
        if not DOT_LOSS:
            y = _sum_of_parts(parts, units + unit, token, blocks, columns, D, TOKENS, BLOCKS)
            error += y * down_scale
            if RESIDUAL:
                error += key
        delta = tl.sum(down_columns * (error * down_scale)[:, None], 0)
        there = unit * TOKENS + token
        a = tl.load(of_keys + there * WIDTH + inner, mask=inner < WIDTH, other=0.0)
        there = (units + unit) * TOKENS + token
        b = tl.load(of_keys + there * WIDTH + inner, mask=inner < WIDTH, other=0.0)
        s = sigmoid(a)
        silu = a * s
        slope = s + silu * (1 - s)
        rate = _load_rate(eta, eta_strides, row, head, token, 0, ACC)
        gate_total += (delta * b * slope)[:, None] * (rate * key)[None, :]
        rate = _load_rate(eta, eta_strides, row, head, token, 1, ACC)
        up_total += (delta * silu)[:, None] * (rate * key)[None, :]
        rate = _load_rate(eta, eta_strides, row, head, token, 2, ACC)
        down_total += (rate * error)[:, None] * (silu * b)[None, :]
    tl.store(gate_rows, gate_total, mask=keep_rows)
    tl.store(up_rows, up_total, mask=keep_rows)
    tl.store(across, down_total, mask=keep_across)


@triton.jit
def _linear_kernel(
    q, q_strides, k, k_strides, v, v_strides, eta, eta_strides,
    down, down_target, down_sum, read,
    slots, heads, blocks,
    D: tl.constexpr, TOKENS: tl.constexpr, RESIDUAL: tl.constexpr, DOT_LOSS: tl.constexpr,
    D_BLOCK: tl.constexpr, BLOCK: tl.constexpr, TINY: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """All of a linear network, for a block of its outputs: what it reads and its rows' sums."""
    unit, place, row, head, outs = _here(slots, blocks, heads, BLOCK)
    columns = tl.arange(0, D_BLOCK)
    here, keep = _block(down, place, outs, columns, D, D)
    rows = tl.load(here, mask=keep, other=0.0).to(ACC)
    there, keep = _block(down_sum, place, outs, columns, D, D)
    total = tl.load(there, mask=keep, other=0.0)
    scale = _row_scale(down_target, tl.sum(rows * rows, 1), head, outs, D, TINY)
    for token in range(TOKENS):
        query = _load_token(q, q_strides, row, head, token, columns, D, ACC)
        y = tl.sum(rows * query[None, :], 1)
        if RESIDUAL:
            y += _load_token(q, q_strides, row, head, token, outs, D, ACC)
        tl.store(read + (unit * TOKENS + token) * D + outs, y, mask=outs < D)
        key = _load_token(k, k_strides, row, head, token, columns, D, ACC)
        error = -_load_token(v, v_strides, row, head, token, outs, D, ACC)
        if not DOT_LOSS:
            error += tl.sum(rows * key[None, :], 1) * scale
            if RESIDUAL:
                error += _load_token(k, k_strides, row, head, token, outs, D, ACC)
        rate = _load_rate(eta, eta_strides, row, head, token, 0, ACC)
        total += (rate * error)[:, None] * key[None, :]
    tl.store(there, total, mask=keep)


def decode_step(
    network: MemoryNetwork,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    weights: FastWeights,
    targets: Mapping[str, Tensor],
    gradient: FastWeights,
    slots: Tensor | None = None,
) -> Tensor:
    """As ``allmem.memory.kernels.decode_step``."""
    R, H, N, d = q.shape
    h = weights["down"].shape[-1]
    dtype = weights["down"].dtype
    require_contiguous({f"gradient.{name}": g for name, g in gradient.items()})
    F = {name: w.contiguous() for name, w in weights.items()}
    read = torch.empty(R, H, N, d, dtype=q.dtype, device=q.device)
    if not read.numel():
        return read
    blocks = triton.cdiv(h, BLOCK)
    grid = (R * H * blocks,)
    t = {name: target.contiguous() for name, target in targets.items()}
    options: dict[str, Any] = {
        "D": d,
        "TOKENS": N,
        "D_BLOCK": power_of_two(d),
        "BLOCK": BLOCK,
        "TINY": SMALLEST_NORM,
        "ACC": accumulator(dtype),
        "num_warps": 4 if d <= NARROW else 8,
    }
    loss = {"RESIDUAL": network.residual, "DOT_LOSS": network.dot_loss}
    tokens = (q, q.stride(), k, k.stride())
    goals = (v, v.stride(), eta, eta.stride())
    with torch.cuda.device_of(q):
        if not network.swiglu:
            _linear_kernel[grid](
                *(*tokens, *goals, F["down"], t.get("down"), gradient["down"], read),
                *(slots, H, blocks),
                **loss,
                **options,
            )
            return read
        empty = partial(torch.empty, dtype=dtype, device=q.device)
        of_keys, parts = empty(2, R * H, N, h), empty(2, R * H, blocks, N, d)
        squares = empty(R * H, blocks, d) if "down" in t else None
        _forward_kernel[grid](
            *(*tokens, F["gate"], F["up"], F["down"]),
            *(t.get("gate"), t.get("up"), of_keys, parts, squares),
            *(slots, H, R * H, blocks),
            WIDTH=h,
            NORM_DOWN="down" in t,
            **options,
        )
        _backward_kernel[grid](
            *(*tokens, *goals, F["down"], t.get("down"), of_keys, parts, squares),
            *(gradient["gate"], gradient["up"], gradient["down"], read),
            *(slots, H, R * H, blocks),
            WIDTH=h,
            BLOCKS=triton.next_power_of_2(blocks),
            **loss,
            **options,
        )
    return read
