"""``MemoryNetwork.step`` for many tokens: one kernel that reads, one that computes the factors.

Both go over the hidden width in blocks, as attention goes over keys. For a tile of tokens the
products a = F_gate z and b = F_up z with one block, and SiLU(a) * b, never leave the chip; the
output adds up in registers.

The gradient goes back only once the whole output is known. So its kernel goes over the blocks twice
and computes a and b again the second time. Keeping them takes shared memory in proportion to h;
storing them takes 4 N h numbers of traffic, and traffic is what bounds this kernel already.

For Qwen3-0.6B (H = 8, d = h = 128, a chunk of 2048 tokens, bf16, one row):

    read      1.6 GFLOP,   9.2 MB:   1.6 us of an H100's 990 TFLOP/s,    2.7 us of its 3.35 TB/s
    factors   3.2 GFLOP,  34.3 MB:   3.3 us (2.2 without the products computed again),    10.2 us

Torch's operations pass over about 52 tensors of N H d numbers, 218 MB, these kernels over 10, of
which the factors are six. Whoever adds up the factors' products reads those once more.

Letters: R rows, H memory heads, N tokens, d head size, h width; a *unit* is one head of one row.
"""

# Triton reads the annotations of kernels itself: only ``tl.constexpr`` means anything to it.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from allmem.kernels import interpreted
from allmem.memory.kernels.tiles import STAGES, step_tile
from allmem.memory.network import UNSCALED, Factors, MemoryNetwork, Scales
from allmem.memory.state import FastWeights

__all__ = ["accumulator", "place_of", "sigmoid", "step"]


@triton.jit
def sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def place_of(slots, unit, heads):
    """Where the matrices of a unit are among those of all slots, [P H, ..]: at its row's slot; at
    the unit itself where there are none."""
    place = unit
    if slots is not None:
        place = tl.load(slots + unit // heads) * heads + unit % heads
    return place


@triton.jit
def _here(tiles, heads, N_BLOCK: tl.constexpr):
    """The unit of this program, its row and head, and its tokens [N_BLOCK]."""
    program = tl.program_id(0)
    unit = program // tiles
    n = program % tiles * N_BLOCK + tl.arange(0, N_BLOCK)
    # Offsets of rows, heads and tokens pass 2^31 in tensors that fit a GPU.
    return unit.to(tl.int64), (unit // heads).to(tl.int64), (unit % heads).to(tl.int64), n


@triton.jit
def _load_tokens(x, strides, row, head, n, columns, tokens, SIZE: tl.constexpr):
    """x[row, head, n, columns] of [R, H, N, SIZE], zero beyond it."""
    start = x + row * strides[0] + head * strides[1]
    offsets = n.to(tl.int64)[:, None] * strides[2] + columns.to(tl.int64)[None, :] * strides[3]
    keep = (n < tokens)[:, None] & (columns < SIZE)[None, :]
    return tl.load(start + offsets, mask=keep, other=0.0)


@triton.jit
def _store_tokens(x, value, unit, n, columns, tokens, SIZE: tl.constexpr):
    """x[unit, n, columns] = value, in a contiguous [R H, N, SIZE]."""
    keep = (n < tokens)[:, None] & (columns < SIZE)[None, :]
    offsets = (unit * tokens + n)[:, None] * SIZE + columns[None, :]
    tl.store(x + offsets, value, mask=keep)


@triton.jit
def _load_rates(eta, strides, row, head, n, tokens, matrix: tl.constexpr, ACC: tl.constexpr):
    """eta[row, head, n, matrix] as a column, [N_BLOCK, 1]."""
    start = eta + row * strides[0] + head * strides[1] + matrix * strides[3]
    rates = tl.load(start + n.to(tl.int64) * strides[2], mask=n < tokens, other=0.0)
    return rates.to(ACC)[:, None]


@triton.jit
def _load_matrix(weight, unit, outs, ins, OUT: tl.constexpr, IN: tl.constexpr):
    """weight[unit, outs, ins] of a contiguous [R H, OUT, IN], zero beyond it."""
    keep = (outs < OUT)[:, None] & (ins < IN)[None, :]
    start = weight + unit * (OUT * IN)
    return tl.load(start + outs[:, None] * IN + ins[None, :], mask=keep, other=0.0)


@triton.jit
def _scaled(y, scale, unit, outs, OUT: tl.constexpr):
    """y [N_BLOCK, outs] times scale[unit, outs], where there is one."""
    if scale is not None:
        y *= tl.load(scale + unit * OUT + outs, mask=outs < OUT, other=0.0).to(y.dtype)[None, :]
    return y


@triton.jit
def _add_product(total, x, weight, OPERANDS: tl.constexpr):
    """total + x weight^T."""
    right = tl.trans(weight.to(OPERANDS))
    return tl.dot(x.to(OPERANDS), right, total, input_precision="ieee", out_dtype=total.dtype)


@triton.jit
def _gate_and_up(
    z, gate, up, gate_scale, up_scale, unit, inner, columns, zero,
    D: tl.constexpr, WIDTH: tl.constexpr, OPERANDS: tl.constexpr,
):  # fmt: skip
    """F'_gate z and F'_up z, [N_BLOCK, H_BLOCK], of one block of the width."""
    a = _add_product(zero, z, _load_matrix(gate, unit, inner, columns, WIDTH, D), OPERANDS)
    b = _add_product(zero, z, _load_matrix(up, unit, inner, columns, WIDTH, D), OPERANDS)
    return _scaled(a, gate_scale, unit, inner, WIDTH), _scaled(b, up_scale, unit, inner, WIDTH)


@triton.jit
def _output(
    z, x, strides, gate, up, down, gate_scale, up_scale,
    unit, row, head, n, columns, tokens, zero,
    D: tl.constexpr, WIDTH: tl.constexpr, SWIGLU: tl.constexpr,
    H_BLOCK: tl.constexpr, OPERANDS: tl.constexpr,
):  # fmt: skip
    """F_down (SiLU(F'_gate z) * (F'_up z)), or F_down z, [N_BLOCK, D_BLOCK], for z of x."""
    y = tl.zeros([z.shape[0], z.shape[1]], zero.dtype)
    for first in range(0, WIDTH, H_BLOCK):
        inner = first + tl.arange(0, H_BLOCK)
        if SWIGLU:
            a, b = _gate_and_up(
                z, gate, up, gate_scale, up_scale, unit, inner, columns, zero, D, WIDTH, OPERANDS
            )
            hidden = a * sigmoid(a) * b
        else:
            hidden = _load_tokens(x, strides, row, head, n, inner, tokens, D)
        y = _add_product(y, hidden, _load_matrix(down, unit, columns, inner, D, WIDTH), OPERANDS)
    return y


@triton.jit
def _read_kernel(
    q, strides, gate, up, down, read,
    heads, tokens, tiles,
    D: tl.constexpr, WIDTH: tl.constexpr, SWIGLU: tl.constexpr, RESIDUAL: tl.constexpr,
    N_BLOCK: tl.constexpr, D_BLOCK: tl.constexpr, H_BLOCK: tl.constexpr,
    ACC: tl.constexpr, OPERANDS: tl.constexpr,
):  # fmt: skip
    """M(q; F) of one tile of tokens."""
    unit, row, head, n = _here(tiles, heads, N_BLOCK)
    columns = tl.arange(0, D_BLOCK)
    z = _load_tokens(q, strides, row, head, n, columns, tokens, D)
    zero = tl.zeros([N_BLOCK, H_BLOCK], ACC)
    y = _output(
        z, q, strides, gate, up, down, None, None, unit, row, head, n, columns, tokens, zero,
        D, WIDTH, SWIGLU, H_BLOCK, OPERANDS,
    )  # fmt: skip
    if RESIDUAL:
        y += z.to(ACC)
    _store_tokens(read, y, unit, n, columns, tokens, D)


@triton.jit
def _factors_kernel(
    k, k_strides, v, v_strides, eta, eta_strides,
    gate, up, down, gate_scale, up_scale, down_scale,
    gate_left, gate_right, up_left, up_right, down_left, down_right,
    heads, tokens, tiles,
    D: tl.constexpr, WIDTH: tl.constexpr, SWIGLU: tl.constexpr, RESIDUAL: tl.constexpr,
    DOT_LOSS: tl.constexpr,
    N_BLOCK: tl.constexpr, D_BLOCK: tl.constexpr, H_BLOCK: tl.constexpr,
    ACC: tl.constexpr, OPERANDS: tl.constexpr,
):  # fmt: skip
    """The factors of all gradients of one tile of tokens; of a linear network only ``down_left``,
    since its other factor is k."""
    unit, row, head, n = _here(tiles, heads, N_BLOCK)
    columns = tl.arange(0, D_BLOCK)
    z = _load_tokens(k, k_strides, row, head, n, columns, tokens, D)
    error = -_load_tokens(v, v_strides, row, head, n, columns, tokens, D).to(ACC)
    zero = tl.zeros([N_BLOCK, H_BLOCK], ACC)
    if not DOT_LOSS:
        y = _output(
            z, k, k_strides, gate, up, down, gate_scale, up_scale,
            unit, row, head, n, columns, tokens, zero,
            D, WIDTH, SWIGLU, H_BLOCK, OPERANDS,
        )  # fmt: skip
        error += _scaled(y, down_scale, unit, columns, D)
        if RESIDUAL:
            error += z.to(ACC)
    # Rates stand in the order of the matrices' names: gate, up, down.
    rate = _load_rates(eta, eta_strides, row, head, n, tokens, 2 if SWIGLU else 0, ACC)
    _store_tokens(down_left, rate * error, unit, n, columns, tokens, D)
    if SWIGLU:
        rate = _load_rates(eta, eta_strides, row, head, n, tokens, 0, ACC)
        _store_tokens(gate_right, rate * z.to(ACC), unit, n, columns, tokens, D)
        rate = _load_rates(eta, eta_strides, row, head, n, tokens, 1, ACC)
        _store_tokens(up_right, rate * z.to(ACC), unit, n, columns, tokens, D)
        back = _scaled(error, down_scale, unit, columns, D).to(OPERANDS)
        for first in range(0, WIDTH, H_BLOCK):
            inner = first + tl.arange(0, H_BLOCK)
            a, b = _gate_and_up(
                z, gate, up, gate_scale, up_scale, unit, inner, columns, zero, D, WIDTH, OPERANDS
            )
            block = _load_matrix(down, unit, columns, inner, D, WIDTH).to(OPERANDS)
            delta = tl.dot(back, block, zero, input_precision="ieee", out_dtype=ACC)
            s = sigmoid(a)
            silu = a * s
            slope = s + silu * (1 - s)
            _store_tokens(gate_left, delta * b * slope, unit, n, inner, tokens, WIDTH)
            _store_tokens(up_left, delta * silu, unit, n, inner, tokens, WIDTH)
            _store_tokens(down_right, silu * b, unit, n, inner, tokens, WIDTH)


def accumulator(dtype: torch.dtype) -> tl.dtype:
    """In what sums of such numbers are taken."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def step(
    network: MemoryNetwork,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    weights: FastWeights,
    scales: Scales = UNSCALED,
) -> tuple[Tensor, dict[str, Factors]]:
    """As ``allmem.memory.kernels.step``."""
    *units, N, d = q.shape
    h = weights["down"].shape[-1]
    tile = step_tile(d, q.dtype)
    tiles = triton.cdiv(N, tile.tokens)
    F = {name: w.contiguous() for name, w in weights.items()}
    matrices = F.get("gate"), F.get("up"), F["down"]
    s = {name: scale.contiguous() for name, scale in scales.items()}
    acc = accumulator(q.dtype)
    options: dict[str, Any] = {
        "D": d,
        "WIDTH": h,
        "SWIGLU": network.swiglu,
        "RESIDUAL": network.residual,
        "N_BLOCK": tile.tokens,
        "D_BLOCK": tile.head,
        "H_BLOCK": tile.width,
        "ACC": acc,
        # The interpreter multiplies the bits of bf16 numbers as if they were integers.
        "OPERANDS": tl.bfloat16 if q.dtype == torch.bfloat16 and not interpreted() else acc,
        "num_warps": tile.warps,
        "num_stages": STAGES,
    }

    def empty(size: int) -> Tensor:
        return torch.empty(*units, N, size, dtype=q.dtype, device=q.device)

    read = empty(d)
    down = empty(d), empty(h) if network.swiglu else k
    gate = up = None
    if network.swiglu:
        gate, up = (empty(h), empty(d)), (empty(h), empty(d))
    if read.numel():
        if len(units) == 1:
            q, k, v, eta = (t[:, None] for t in (q, k, v, eta))
        R, H = q.shape[:2]
        grid = (R * H * tiles,)
        with torch.cuda.device_of(q):
            _read_kernel[grid](q, q.stride(), *matrices, read, H, N, tiles, **options)
            _factors_kernel[grid](
                *(k, k.stride(), v, v.stride(), eta, eta.stride()),
                *matrices,
                *(s.get(name) for name in ("gate", "up", "down")),
                *(gate or (None, None)),
                *(up or (None, None)),
                *(down if network.swiglu else (down[0], None)),
                *(H, N, tiles),
                DOT_LOSS=network.dot_loss,
                **options,
            )
    if gate is None or up is None:
        return read, {"down": down}
    return read, {"gate": gate, "up": up, "down": down}
