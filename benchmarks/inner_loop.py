"""How near the memory comes to the machine's matrix rate, and how far ahead of a peer it is.

    python -m benchmarks.inner_loop [--device cuda] [--threads 2]

For the memory shapes of SmolLM2-135M and Qwen3-0.6B, in fp32 and bfloat16:

- the inner loop alone, forward and with its backward pass, in FLOPs (the products of the closed
  form; a backward pass counts twice) as a share of the rate of a large matrix product of the same
  dtype, measured just before;
- a whole memory layer (projections, convolutions, norms, inner loop, gate) in tokens a second,
  beside titans-pytorch's ``NeuralMemory`` with as many heads, the same head size, network width and
  chunk, if it is installed.

Everything reads the same random tokens in one call.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from allmem.config import MemoryConfig
from allmem.layout import Layout
from allmem.memory.inner_loop import inner_loop
from allmem.memory.projections import AttentionWeights
from allmem.memory.state import MemoryState
from allmem.memory.unit import MemoryUnit
from benchmarks.measure import Timing, record, timed

SHAPES: dict[str, dict[str, int]] = {
    "SmolLM2-135M": {"hidden": 576, "queries": 9, "heads": 3, "head_dim": 192, "width": 192},
    "Qwen3-0.6B": {"hidden": 1024, "queries": 16, "heads": 8, "head_dim": 128, "width": 128},
    "Qwen3-0.6B, h = 2 d": {
        "hidden": 1024,
        "queries": 16,
        "heads": 8,
        "head_dim": 128,
        "width": 256,
    },
}
MATRIX = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of the product by which rates are measured."""


def matrix_rate(dtype: torch.dtype, device: torch.device) -> float:
    """FLOPs a second of a large product; the fastest of ten."""
    size = MATRIX[device.type]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / timed(lambda: a @ b, 10).fastest


def loop_inputs(
    shape: dict[str, int], tokens: int, dtype: torch.dtype, device: torch.device
) -> Any:
    """q, k, v, eta, beta and F_0."""
    generator = torch.Generator().manual_seed(0)
    heads, d, h = (shape[n] for n in ("heads", "head_dim", "width"))

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(device)

    q, k, v = (normal(1, tokens, heads, d).to(dtype) for _ in range(3))
    eta = 1e-3 * torch.rand(1, tokens, heads, 3, generator=generator).to(device)
    beta = torch.rand(1, tokens, heads, generator=generator).to(device)
    initial = {
        "gate": normal(heads, h, d) * d**-0.5,
        "up": normal(heads, h, d) * d**-0.5,
        "down": normal(heads, d, h) * h**-0.5,
    }
    return (q, k, v, eta, beta), initial


def time_loop(
    shape: dict[str, int], tokens: int, chunk: int, dtype: torch.dtype, device: torch.device
) -> tuple[Timing, Timing]:
    """The inner loop over one text, forward, and forward and backward."""
    inputs, initial = loop_inputs(shape, tokens, dtype, device)
    sizes = {name: shape[name] for name in ("heads", "head_dim", "width")}
    config = MemoryConfig(chunk=chunk, **sizes)
    layout = Layout.dense(0, 1, tokens, device)

    def forward() -> Tensor:
        state = MemoryState.begin(initial, 1, config.momentum)
        return inner_loop(*inputs, state, initial, layout, config)[0]

    def both() -> None:
        leaves = [*inputs, *initial.values()]
        for leaf in leaves:
            leaf.requires_grad_()
        torch.autograd.grad(forward().float().square().sum(), leaves)
        for leaf in leaves:
            leaf.requires_grad_(False)

    with torch.no_grad():
        one = timed(forward, 5)
    return one, timed(both, 3)


def our_layer(
    shape: dict[str, int], chunk: int, dtype: torch.dtype, device: torch.device
) -> Callable[[Tensor], Any]:
    sizes = {name: shape[name] for name in ("heads", "head_dim", "width")}
    config = MemoryConfig(chunk=chunk, **sizes)
    attention = AttentionWeights(shape["queries"], shape["heads"], 64)
    unit = MemoryUnit(shape["hidden"], config.sized(shape["hidden"], shape["heads"]), attention)
    unit = unit.to(device, dtype)
    for part in (unit.eta, unit.beta, unit.initial):
        part.float()

    def read(x: Tensor) -> Any:
        return unit(x, unit.begin(1, x.dtype), Layout.dense(0, 1, x.shape[1], device))

    return read


def their_layer(
    shape: dict[str, int], chunk: int, dtype: torch.dtype, device: torch.device
) -> Callable[[Tensor], Any] | None:
    """titans-pytorch's memory of the same sizes; ``None`` without it."""
    try:
        from titans_pytorch import MemorySwiGluMLP, NeuralMemory
    except ImportError:
        return None
    # Their network has two thirds of the factor as its width.
    factor = 1.5 * shape["width"] / shape["head_dim"]
    memory = NeuralMemory(
        dim=shape["hidden"],
        heads=shape["heads"],
        dim_head=shape["head_dim"],
        chunk_size=chunk,
        batch_size=chunk,
        model=MemorySwiGluMLP(shape["head_dim"], depth=1, expansion_factor=factor + 1e-6),
    )
    return memory.to(device, dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--name", default="inner_loop")
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device, tokens, chunk = torch.device(options.device), options.tokens, options.chunk
    rows = []
    for name, shape in SHAPES.items():
        for dtype in (getattr(torch, n) for n in options.dtypes.split(",")):
            rate = matrix_rate(dtype, device)
            flops = 20 * tokens * shape["heads"] * shape["head_dim"] * shape["width"]
            one, both = time_loop(shape, tokens, chunk, dtype, device)
            x = torch.randn(1, tokens, shape["hidden"], device=device).to(dtype)
            ours, theirs = (make(shape, chunk, dtype, device) for make in (our_layer, their_layer))
            with torch.no_grad():
                paces = [
                    tokens / timed(partial(layer, x), 3).median if layer else None
                    for layer in (ours, theirs)
                ]
            row = {
                "shape": name,
                "dtype": str(dtype).removeprefix("torch."),
                "matrix rate (GFLOP/s)": rate / 1e9,
                "inner loop (ms)": Timing(*(1e3 * t for t in _seconds(one)), one.runs),
                "of the matrix rate": f"{flops / one.median / rate:.0%}",
                "with backward (ms)": Timing(*(1e3 * t for t in _seconds(both)), both.runs),
                "of the matrix rate, with backward": f"{3 * flops / both.median / rate:.0%}",
                "layer (tokens/s)": paces[0],
                "titans-pytorch (tokens/s)": paces[1] or "not installed",
                "times as fast": paces[0] / paces[1] if paces[0] and paces[1] else "",
            }
            print(row, flush=True)
            rows.append(row)
    record(
        options.name,
        "The memory against the machine's matrix rate, and against titans-pytorch",
        rows,
        [
            (
                f"{tokens} tokens in one call, chunk {chunk}, batch 1. Inner loop: 20 H d h FLOPs "
                "a token, three times as many with its backward pass. Median (fastest–slowest)."
            ),
            (
                "The layer is AllMem's with full projections, convolutions, norms and gate; the "
                "peer is NeuralMemory with MemorySwiGluMLP of the same heads, head size, width and "
                "chunk, momentum on."
            ),
        ],
    )


def _seconds(timing: Timing) -> tuple[float, float, float]:
    return timing.median, timing.fastest, timing.slowest


if __name__ == "__main__":
    main()
