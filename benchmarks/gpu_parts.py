"""The parts of the GPU programme: which sizes each measures, and about how long it may take.

A part is a function that yields rows of its table and what they say of the targets, one after the
other, so that it can be ended between two of them.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks import inner_loop, peers
from benchmarks.gpu_checks import CheckSizes, check_rows
from benchmarks.gpu_reading import Pair, Result, batch_rows, decode_rows, prefill_rows
from benchmarks.rates import copy_rate, matrix_rate
from benchmarks.shapes import SHAPES, Shape
from benchmarks.step_share import NOTES as STEP_NOTES
from benchmarks.step_share import step_row
from benchmarks.where_time_goes import profile_rows, upright, works

__all__ = ["PARTS", "Context", "GpuPart", "Rows"]

Rows = list[dict[str, Any]]
BF16, FP32 = torch.bfloat16, torch.float32
LONG = 131072
QUICK_MEMORY = 4 << 20
"""Bytes of a device that a quick run pretends to have."""


@dataclass
class Context:
    """What the parts share."""

    device: torch.device
    quick: bool = False
    pairs: dict[str, Pair] = field(default_factory=dict)

    def shape(self, name: str) -> Shape:
        return SHAPES["tiny" if self.quick else name]

    def pair(self, name: str) -> Pair:
        """The models of a shape; those of any other are given up."""
        if name not in self.pairs:
            self.release()
            self.pairs[name] = Pair.of(self.shape(name), self.device)
        return self.pairs[name]

    def release(self) -> None:
        """Give up all models."""
        self.pairs.clear()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @property
    def memory(self) -> int:
        """Bytes of the device."""
        return QUICK_MEMORY if self.quick else torch.cuda.mem_get_info(self.device)[1]


@dataclass(frozen=True)
class GpuPart:
    """A part of the programme."""

    name: str
    title: str
    seconds: float
    """About how much it may take; what earlier parts left is added."""
    rows: Callable[[Context], Iterator[Result]]
    notes: tuple[str, ...] = ()
    shown: Callable[[Sequence[dict[str, Any]]], Rows] = list
    """Rows as the table has them."""


def rates(context: Context) -> Iterator[Result]:
    size = 128 if context.quick else None
    for dtype in (BF16, FP32):
        rate = matrix_rate(dtype, context.device, size)
        name = str(dtype).removeprefix("torch.")
        yield {"what": f"matrix product, {name} (TFLOP/s)", "rate": rate / 1e12}, []
    copied = copy_rate(context.device, 1 << 20 if context.quick else None)
    yield {"what": "copy, bytes read and written (GB/s)", "rate": copied / 1e9}, []


def checks(context: Context) -> Iterator[Result]:
    sizes = CheckSizes(2, 32, 64, 128, 8, 300, 12) if context.quick else CheckSizes()
    for row in check_rows(context.device, context.shape("qwen3-0.6b"), sizes):
        yield row, []


def loops(context: Context) -> Iterator[Result]:
    if context.quick:
        yield from inner_loop.loop_rows(
            inner_loop.TINY, 256, [64], [1, 2], [BF16], context.device, 128
        )
        return
    cases = {SHAPES[name].title: SHAPES[name].loop() for name in ("qwen3-0.6b", "qwen3-1.7b")}
    # One long text; and many, which fill the device.
    for batches, tokens in (([1], 32768), ([32], 32 * 4096)):
        yield from inner_loop.loop_rows(cases, tokens, [2048], batches, [BF16], context.device)
    small = {SHAPES["qwen3-0.6b"].title: cases[SHAPES["qwen3-0.6b"].title]}
    yield from inner_loop.loop_rows(small, 32 * 4096, [2048], [32], [FP32], context.device)


def prefill(name: str) -> Callable[[Context], Iterator[Result]]:
    def rows(context: Context) -> Iterator[Result]:
        # The target's length first, and then the others as time allows.
        lengths = [256, 128] if context.quick else [LONG, 8192, 32768, 65536, 16384]
        blocks = [64] if context.quick else [8192, 32768]
        pair = context.pair(name)
        yield from prefill_rows(pair, lengths, blocks, 1 if context.quick else 3, lengths[0])

    return rows


def decoding(context: Context) -> Iterator[Result]:
    lengths, batches = ([64, 256], [1, 2]) if context.quick else ([1024, LONG], [1, 4, 32])
    runs = 1 if context.quick else 5
    yield from decode_rows(context.pair("qwen3-0.6b"), lengths, batches, runs)


def batches(context: Context) -> Iterator[Result]:
    length = 512 if context.quick else LONG
    yield from batch_rows(context.pair("qwen3-0.6b"), length, context.memory)


def steps(context: Context) -> Iterator[Result]:
    context.release()
    cases: list[tuple[str, int, int | None]]
    cases = [("qwen3-0.6b", 8192, None), ("qwen3-1.7b", 8192, 4096)]
    for name, tokens, segment in [("qwen3-0.6b", 200, None)] if context.quick else cases:
        row, finding = step_row(
            context.shape(name),
            BF16,
            context.device,
            tokens,
            segment=segment,
            runs=1 if context.quick else 3,
            rate_size=128 if context.quick else None,
        )
        context.release()
        yield row, [finding]


def layers(context: Context) -> Iterator[Result]:
    title = SHAPES["qwen3-0.6b"].title
    cases = inner_loop.TINY if context.quick else {title: inner_loop.CASES[title]}
    tokens, chunks = (128, [64]) if context.quick else (32768, [2048, 64])
    yield from peers.layer_rows(cases, tokens, chunks, [BF16], context.device)


def profiles(context: Context) -> Iterator[Result]:
    context.release()
    shape, tokens = context.shape("qwen3-0.6b"), 256 if context.quick else 8192
    found = works(shape, context.device.type, BF16, tokens)
    for row in profile_rows(found, context.device.type, 1 if context.quick else 5):
        yield row, []


PARTS = (
    GpuPart("rates", "What the device does at best", 8, rates),
    GpuPart(
        "checks",
        "What the device computes, against the definitions",
        70,
        checks,
        ("The norm of the difference over the norm of what is right, on random inputs.",),
    ),
    GpuPart("loop", "The inner loop against the matrix rate", 40, loops, (inner_loop.NOTE,)),
    GpuPart(
        "prefill",
        "Prefill: Qwen3-0.6B",
        105,
        prefill("qwen3-0.6b"),
        (
            "bfloat16, batch 1. Median of runs after a warm-up (fastest–slowest).",
            "Full attention: the fastest of torch's fused kernels, one call for the whole text.",
            "AllMem: window 4096, 128 sinks, chunk 2048, blocks of 2,048 tokens.",
        ),
    ),
    GpuPart(
        "decode",
        "Decoding: Qwen3-0.6B",
        45,
        decoding,
        ("bfloat16. Full attention from random keys and values, which are never copied.",),
    ),
    GpuPart(
        "batch",
        "How many sequences decode together: Qwen3-0.6B",
        30,
        batches,
        ("By bytes: what the device has, less a model's weights, over the bytes of a sequence.",),
    ),
    GpuPart("step", "A step of distillation against what it needs", 65, steps, tuple(STEP_NOTES)),
    GpuPart(
        "layers",
        "A memory layer beside those of others",
        32,
        layers,
        tuple(peers.notes(32768)),
    ),
    GpuPart(
        "profile",
        "Where the time goes: Qwen3-0.6B",
        45,
        profiles,
        ("Shares of the watched run, of kernels by what they are; they add up to 100 %.",),
        upright,
    ),
    GpuPart("prefill-1.7B", "Prefill: Qwen3-1.7B", 50, prefill("qwen3-1.7b")),
)
"""In this order: what matters most first, for a run that is stopped."""
