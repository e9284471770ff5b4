"""Whether torch.compile makes the inner loop faster on a CPU, where its operations run one by one.

    python -m benchmarks.compiled_step

The inner loop of ``benchmarks.inner_loop`` as it is, and with everything between its blocks of
tokens compiled (reading, gradients, and their backward pass): what can be fused then are the
elementwise operations between the products. Both in turn, on the same inputs.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch

from allmem.memory.network import MemoryNetwork
from benchmarks.inner_loop import CASES, TINY, Sizes, time_loop
from benchmarks.measure import Timing, add_options, record

METHODS = ("step", "read", "step_backward", "read_backward")
CPU = torch.device("cpu")
TURNS = 3
VARIANTS = 64


@contextmanager
def compiled() -> Iterator[None]:
    """Inside the block every network computes with compiled code."""
    with ExitStack() as stack:
        for name in METHODS:
            fused = torch.compile(getattr(MemoryNetwork, name), dynamic=False)
            stack.enter_context(patch.object(MemoryNetwork, name, fused))
        # Shapes, options and what is recorded differ from call to call.
        stack.enter_context(torch._dynamo.config.patch(recompile_limit=VARIANTS))
        yield


def compare(sizes: Sizes, tokens: int, chunk: int, dtype: torch.dtype) -> dict[str, Any]:
    """Forward, and forward and backward: the faster median of each, and their ratio."""
    found: dict[bool, list[tuple[Timing, Timing]]] = {False: [], True: []}
    for _ in range(TURNS):
        found[False].append(time_loop(sizes, 1, tokens, chunk, dtype, CPU))
        with compiled():
            found[True].append(time_loop(sizes, 1, tokens, chunk, dtype, CPU))
    row: dict[str, Any] = {}
    for place, what in enumerate(("forward", "both")):
        eager, fused = (
            min((turn[place] for turn in found[way]), key=lambda timing: timing.median)
            for way in (False, True)
        )
        row |= {
            f"{what} (s)": eager,
            f"{what}, compiled (s)": fused,
            f"{what}: times as fast": eager.median / fused.median,
        }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--chunk", type=int, default=512)
    add_options(parser, "compiled_step")
    options = parser.parse_args()
    cases = TINY if options.quick else CASES
    rows = []
    for dtype in (torch.bfloat16, torch.float32):
        for name, sizes in cases.items():
            precision = str(dtype).removeprefix("torch.")
            row = compare(sizes, options.tokens, options.chunk, dtype)
            rows.append({"shape": name, "precision": precision, **row})
            print(rows[-1], flush=True)
    note = (
        f"{options.tokens} tokens in chunks of {options.chunk}, one row. The fastest median of "
        f"{TURNS} turns (fastest–slowest of that turn)."
    )
    record(options.name, "The inner loop, compiled", rows, [note], options=options)


if __name__ == "__main__":
    main()
