"""How near the memory's inner loop comes to the machine's matrix rate.

    python -m benchmarks.inner_loop [--device cuda --chunks 2048 --tokens 16384 --batches 1,16]

For the memory shapes of SmolLM2-135M and the paper's models, in fp32 and bfloat16: the inner loop
alone, forward and with its backward pass, in FLOPs (the products of the closed form; a backward
pass counts twice) as a share of the rate of a large matrix product of the same dtype, measured just
before and after. Everything reads random tokens in one call, from inputs that no cache holds.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from allmem.config import MemoryConfig
from allmem.layout import Layout
from allmem.memory.inner_loop import inner_loop
from allmem.memory.state import MemoryState
from benchmarks.measure import Timing, add_options, record, rotating, timed
from benchmarks.rates import matrix_rate
from benchmarks.shapes import SHAPES
from benchmarks.targets import Finding

__all__ = ["CASES", "NOTE", "loop_rows"]

Sizes = dict[str, Any]
"""``hidden``, ``queries``, ``heads``, ``head_dim`` and ``width`` of a memory layer."""

CASES: dict[str, Sizes] = {
    SHAPES["smollm2"].title: SHAPES["smollm2"].loop(),
    SHAPES["qwen3-0.6b"].title: SHAPES["qwen3-0.6b"].loop(),
    "Qwen3-0.6B, h = 2 d": {**SHAPES["qwen3-0.6b"].loop(), "width": 256},
    SHAPES["qwen3-1.7b"].title: SHAPES["qwen3-1.7b"].loop(),
}
TINY = {"tiny": {**SHAPES["tiny"].loop(), "head_dim": 64, "width": 64}}
NOTE = (
    "20 H d h FLOPs a token, three times as many with the backward pass. Median (fastest–slowest). "
    "Its products alone: the ten batched products of a chunk with nothing between them."
)


def loop_inputs(
    sizes: Sizes, rows: int, tokens: int, dtype: torch.dtype, device: torch.device
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """q, k, v, eta and beta; and F_0."""
    heads, d, h = (sizes[n] for n in ("heads", "head_dim", "width"))

    def normal(*size: int) -> Tensor:
        return torch.randn(size, device=device)

    q, k, v = (normal(rows, tokens, heads, d).to(dtype) for _ in range(3))
    eta = 1e-3 * torch.rand(rows, tokens, heads, 3, device=device)
    beta = torch.rand(rows, tokens, heads, device=device)
    initial = {
        "gate": normal(heads, h, d) * d**-0.5,
        "up": normal(heads, h, d) * d**-0.5,
        "down": normal(heads, d, h) * h**-0.5,
    }
    return [q, k, v, eta, beta], initial


def time_loop(
    sizes: Sizes, rows: int, tokens: int, chunk: int, dtype: torch.dtype, device: torch.device
) -> tuple[Timing, Timing]:
    """The inner loop over texts of one length, forward, and forward and backward."""
    shape = {name: sizes[name] for name in ("heads", "head_dim", "width")}
    config = MemoryConfig(chunk=chunk, **shape)
    layout = Layout.dense(0, rows, tokens, device)
    size = 3 * rows * tokens * sizes["heads"] * sizes["head_dim"] * dtype.itemsize
    inputs = rotating(lambda: loop_inputs(sizes, rows, tokens, dtype, device), size, device)

    def forward(tensors: list[Tensor], initial: dict[str, Tensor]) -> Tensor:
        state = MemoryState.begin(initial, rows, config.momentum)
        q, k, v, eta, beta = tensors
        return inner_loop(q, k, v, eta, beta, state, initial, layout, config)[0]

    def both() -> None:
        tensors, initial = next(inputs)
        leaves = [leaf.detach().requires_grad_() for leaf in [*tensors, *initial.values()]]
        names = dict(zip(initial, leaves[len(tensors) :], strict=True))
        read = forward(leaves[: len(tensors)], names)
        torch.autograd.grad(read, leaves, tensors[0])

    with torch.no_grad():
        one = timed(lambda: forward(*next(inputs)), 7, 2, device)
    return one, timed(both, 5, 1, device)


def time_products(
    sizes: Sizes, rows: int, tokens: int, chunk: int, dtype: torch.dtype, device: torch.device
) -> Timing:
    """The ten products of the forward pass, chunk by chunk, with nothing between them: what the
    inner loop could reach if all else cost nothing."""
    d, h, units = sizes["head_dim"], sizes["width"], rows * sizes["heads"]

    def normal(*size: int) -> Tensor:
        return torch.randn(units, *size, device=device, dtype=dtype)

    x, hidden, into, out = normal(chunk, d), normal(chunk, h), normal(h, d), normal(d, h)

    def work() -> None:
        for _ in range(tokens // chunk):
            for _ in range(4):  # gate and up, of queries and keys
                x @ into.mT
            for _ in range(2):  # down
                hidden @ out.mT
            x @ out  # back through down
            for _ in range(2):  # what gate and up are changed by, and down
                hidden.mT @ x
            x.mT @ hidden

    with torch.no_grad():
        return timed(work, 7, 2, device)


def loop_rows(
    cases: dict[str, Sizes],
    tokens: int,
    chunks: Iterable[int],
    batches: Iterable[int],
    dtypes: Iterable[torch.dtype],
    device: torch.device,
    rate_size: int | None = None,
) -> Iterator[tuple[dict[str, Any], list[Finding]]]:
    """A row for every case, and what it says of the targets.

    Args:
        tokens: of all rows of a batch together.
        rate_size: rows and columns of the product that the rate is taken from.
    """
    batches, chunks = list(batches), list(chunks)
    for dtype in dtypes:
        precision = str(dtype).removeprefix("torch.")
        for name, sizes in cases.items():
            rate = matrix_rate(dtype, device, rate_size)
            for batch, chunk in ((b, c) for b in batches for c in chunks):
                length = tokens // batch
                one, both = time_loop(sizes, batch, length, chunk, dtype, device)
                # Of a machine whose pace changes, the better one.
                rate = max(rate, matrix_rate(dtype, device, rate_size))
                flops = 20 * batch * length * sizes["heads"] * sizes["head_dim"] * sizes["width"]
                shares = flops / one.median / rate, 3 * flops / both.median / rate
                alone = flops / time_products(sizes, batch, length, chunk, dtype, device).median
                row = {
                    "shape": name,
                    "dtype": precision,
                    "batch": batch,
                    "tokens": length,
                    "chunk": chunk,
                    "matrix rate (GFLOP/s)": rate / 1e9,
                    "its products alone, of it": f"{alone / rate:.1%}",
                    "inner loop (ms)": one.times(1e3),
                    "of the matrix rate": f"{shares[0]:.1%}",
                    "with backward (ms)": both.times(1e3),
                    "of the matrix rate, with backward": f"{shares[1]:.1%}",
                }
                case = f"{name}, {precision}, {batch} x {length}, chunk {chunk}, {device.type}"
                targets = zip(("loop forward", "loop both"), shares, strict=True)
                yield row, [Finding(target, case, share) for target, share in targets]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=4096, help="of a batch")
    parser.add_argument("--chunks", default="512")
    parser.add_argument("--batches", default="1")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=None)
    add_options(parser, "inner_loop")
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    findings: list[Finding] = []
    for row, said in loop_rows(
        TINY if options.quick else CASES,
        256 if options.quick else options.tokens,
        [64] if options.quick else [int(c) for c in options.chunks.split(",")],
        [int(b) for b in options.batches.split(",")],
        [getattr(torch, name) for name in options.dtypes.split(",")],
        torch.device(options.device),
        128 if options.quick else None,
    ):
        print(row, flush=True)
        rows.append(row)
        findings += said
    title = "The inner loop against the machine's matrix rate"
    record(options.name, title, rows, [NOTE], findings, options, options.device)


if __name__ == "__main__":
    main()
