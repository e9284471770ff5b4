"""What happens when a chunk closes: norms of rows, and clip, momentum, normalisation and write.

A program owns whole rows of one matrix, so the norms that rows are scaled to cost no pass of their
own. The clip needs the norm of the whole matrix first: a kernel before the write sums up squares,
in parts that every program of the matrix adds up in the same order.

For Qwen3-0.6B (H = 8, d = h = 128, fp32, one row) the sums are read twice, the second time from the
cache; weights and momentum are read; all three are written: 9.4 MB, 2.8 us of an H100's 3.35 TB/s,
once in a chunk, in six launches of 64 programs.

Letters: R rows, P slots, H memory heads; a *unit* is one head of one row, its *place* that of its
matrices among those of all slots.
"""

# Triton reads the annotations of kernels itself: only ``tl.constexpr`` means anything to it.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from allmem.config import MemoryConfig
from allmem.errors import AllMemError
from allmem.memory.inner_loop import SMALLEST_NORM
from allmem.memory.kernels.tiles import require_contiguous
from allmem.memory.kernels.triton_step import accumulator, place_of
from allmem.memory.state import FastWeights, MemoryState

__all__ = ["row_norms", "write"]

ELEMENTS = 2048
"""Of a program's rows: sixteen for each thread of four warps, of every tensor that it holds."""


@triton.jit
def _here(
    slots, heads, blocks,
    OUT: tl.constexpr, IN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The unit of this program, the rows [ROWS] of its matrix, and where they are in
    [.., OUT, IN]."""
    program = tl.program_id(0)
    unit = (program // blocks).to(tl.int64)
    outs = program % blocks * ROWS + tl.arange(0, ROWS)
    ins = tl.arange(0, COLUMNS)
    offsets = place_of(slots, unit, heads) * (OUT * IN) + outs[:, None] * IN + ins[None, :]
    return unit, outs, offsets, (outs < OUT)[:, None] & (ins < IN)[None, :]


@triton.jit
def _norms_kernel(
    weight, norms, blocks,
    OUT: tl.constexpr, IN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Norms [.., OUT] of the rows of weight [.., OUT, IN]."""
    unit, outs, offsets, keep = _here(None, 1, blocks, OUT, IN, ROWS, COLUMNS)
    w = tl.load(weight + offsets, mask=keep, other=0.0).to(ACC)
    tl.store(norms + unit * OUT + outs, tl.sqrt(tl.sum(w * w, 1)), mask=outs < OUT)


@triton.jit
def _squares_kernel(
    gradient, squares, slots, heads, blocks,
    OUT: tl.constexpr, IN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Sums [.., blocks] of the squares of gradient [.., OUT, IN], by blocks of rows."""
    _, _, offsets, keep = _here(slots, heads, blocks, OUT, IN, ROWS, COLUMNS)
    g = tl.load(gradient + offsets, mask=keep, other=0.0)
    tl.store(squares + tl.program_id(0), tl.sum(tl.sum(g * g, 1), 0))


@triton.jit
def _normalised(w, target, TINY: tl.constexpr):
    """w with its rows at the length target."""
    return w * (target / tl.maximum(tl.sqrt(tl.sum(w * w, 1)), TINY))[:, None]


@triton.jit
def _write_kernel(
    weight, momentum, gradient, beta, target, squares, closes,
    new_weight, new_momentum, new_gradient,
    chunk, slots, heads, blocks,
    OUT: tl.constexpr, IN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCKS: tl.constexpr, CLIP: tl.constexpr, BEFORE: tl.constexpr, IN_PLACE: tl.constexpr,
    TINY: tl.constexpr,
):  # fmt: skip
    """New weights, momentum and sums of some rows of one matrix. Rows are brought to their target
    length before the write, or else after it."""
    unit, outs, offsets, keep = _here(slots, heads, blocks, OUT, IN, ROWS, COLUMNS)
    marked = True
    if closes is not None:
        marked = tl.load(closes + unit // heads) != 0
    if marked:
        g = tl.load(gradient + offsets, mask=keep, other=0.0)
        w = tl.load(weight + offsets, mask=keep, other=0.0)
        if CLIP is not None:
            each = tl.arange(0, BLOCKS)
            part = tl.load(squares + unit * blocks + each, mask=each < blocks, other=0.0)
            g *= CLIP / tl.maximum(tl.sqrt(tl.sum(part, 0)), CLIP)
        if momentum is not None:
            decay = tl.load(beta + unit) / chunk
            g += decay * tl.load(momentum + offsets, mask=keep, other=0.0)
            tl.store(new_momentum + offsets, g, mask=keep)
        if target is not None:
            length = tl.load(target + unit % heads * OUT + outs, mask=outs < OUT, other=0.0)
            if BEFORE:
                w = _normalised(w, length, TINY) - g
            else:
                w = _normalised(w - g, length, TINY)
        else:
            w -= g
        tl.store(new_weight + offsets, w, mask=keep)
        tl.store(new_gradient + offsets, tl.zeros_like(g), mask=keep)
    elif not IN_PLACE:
        w = tl.load(weight + offsets, mask=keep, other=0.0)
        tl.store(new_weight + offsets, w, mask=keep)
        g = tl.load(gradient + offsets, mask=keep, other=0.0)
        tl.store(new_gradient + offsets, g, mask=keep)
        if momentum is not None:
            u = tl.load(momentum + offsets, mask=keep, other=0.0)
            tl.store(new_momentum + offsets, u, mask=keep)


def _tiling(matrix: Tensor, units: int) -> tuple[tuple[int], dict[str, int]]:
    """The grid over the rows of as many matrices [.., OUT, IN], and the sizes of a program's
    part."""
    out, ins = matrix.shape[-2:]
    columns = triton.next_power_of_2(ins)
    rows = min(max(1, ELEMENTS // columns), triton.next_power_of_2(out))
    blocks = triton.cdiv(out, rows)
    grid = (units * blocks,)
    sizes = {"blocks": blocks, "OUT": out, "IN": ins, "ROWS": rows, "COLUMNS": columns}
    return grid, sizes | {"num_warps": 4 if rows * columns <= ELEMENTS else 8}


def row_norms(weights: FastWeights) -> FastWeights:
    """As ``allmem.memory.kernels.row_norms``."""
    norms = {}
    for name, w in weights.items():
        norms[name] = torch.empty(*w.shape[:-1], 1, dtype=w.dtype, device=w.device)
        if w.numel():
            grid, sizes = _tiling(w, w.shape[:-2].numel())
            with torch.cuda.device_of(w):
                _norms_kernel[grid](w.contiguous(), norms[name], **sizes, ACC=accumulator(w.dtype))
    return norms


def write(
    state: MemoryState,
    targets: Mapping[str, Tensor],
    chunk: int,
    config: MemoryConfig,
    rows: Tensor | None = None,
    *,
    in_place: bool = False,
) -> MemoryState:
    """As ``allmem.memory.kernels.write``.

    Raises:
        AllMemError: if the optimizer is not ``sgd``, a tensor of the state not contiguous, or rows
            that lie in a pool are to be written elsewhere.
    """
    if config.optimizer != "sgd":
        raise AllMemError(f"no kernel writes with the optimizer {config.optimizer!r}, only 'sgd'")
    require_contiguous(state.tensors())
    if state.at is not None and not in_place:
        raise AllMemError("rows that lie in a pool are written in place: in_place must be true")
    new = state if in_place else state.map(torch.empty_like)
    with torch.cuda.device_of(state.beta):
        for name in state.weights if state.beta.numel() else ():
            closes = None if rows is None else rows.contiguous()
            _write_matrix(name, state, new, targets, chunk, config, closes)
    # Last, since every program reads it.
    if rows is None:
        new.beta.zero_()
    else:
        new.beta.copy_(state.beta).masked_fill_(rows[:, None], 0)
    return new


def _write_matrix(
    name: str,
    state: MemoryState,
    new: MemoryState,
    targets: Mapping[str, Tensor],
    chunk: int,
    config: MemoryConfig,
    rows: Tensor | None,
) -> None:
    gradient = state.gradient[name]
    grid, sizes = _tiling(gradient, state.beta.numel())
    unit = {"slots": None if state.at is None else state.at.index, "heads": state.beta.shape[1]}
    squares = None
    if config.clip is not None:
        squares = torch.empty(*grid, dtype=gradient.dtype, device=gradient.device)
        _squares_kernel[grid](gradient, squares, **unit, **sizes)
    target = targets.get(name) if config.norm != "none" else None
    _write_kernel[grid](
        *(state.weights[name], state.momentum.get(name), gradient, state.beta),
        *(None if target is None else target.contiguous(), squares, rows),
        *(new.weights[name], new.momentum.get(name), new.gradient[name]),
        chunk,
        **unit,
        **sizes,
        BLOCKS=triton.next_power_of_2(sizes["blocks"]),
        CLIP=config.clip,
        BEFORE=config.norm == "internal",
        IN_PLACE=new is state,
        TINY=SMALLEST_NORM,
    )
