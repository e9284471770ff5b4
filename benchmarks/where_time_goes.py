"""Where the time goes: reading a block, generating a token, a training step.

    python -m benchmarks.where_time_goes [--device cuda] [--name where_time_goes_before]

torch's profiler times every operation; what an operation spent itself, without those that it
called, counts for its group. What no operation spent is Python, autograd and what lies between: the
rest of the wall clock. On a GPU groups are those of its kernels, and the rest is the time in which
none ran. Watching takes time itself: the wall clock without the profiler stands beside.

SmolLM2's shape on a CPU and Qwen3-0.6B's on a GPU, with random weights.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from allmem.models.cache import AllMemCache
from allmem.models.modeling import READ_BLOCK
from benchmarks.measure import Timing, add_options, record, timed, wait
from benchmarks.op_groups import FUSED, OUTSIDE, VIEWS, kernel_group, op_group, shares
from benchmarks.shapes import SHAPES, Shape, converted
from benchmarks.training_step import step_of, text_batch

__all__ = ["Work", "profile_rows", "upright", "works"]

IDLE = "no kernel running: Python and launches"
Work = tuple[str, Callable[[], Any], int]
"""What it is called, the work, and how often it is done in a run."""


def works(
    shape: Shape, device: str, dtype: torch.dtype, tokens: int, layers: int | None = None
) -> Iterator[Work]:
    """The three, one after the other: the last trains the model that the others read with.

    Args:
        tokens: of the row that is trained on.
    """
    model = converted(shape, dtype, device, layers)
    before = -(-(shape.window + shape.sinks) // READ_BLOCK) * READ_BLOCK
    size = 1, max(before, tokens)
    ids = torch.randint(10, model.config.vocab_size, size, device=device)
    cache = AllMemCache(model.config)

    def read(part: torch.Tensor) -> None:
        with torch.no_grad():
            model(input_ids=part, past_key_values=cache, use_cache=True, logits_to_keep=1)

    # A full window, as nearly everywhere in a long text.
    read(ids[:, :before])
    yield f"reading {READ_BLOCK} tokens", lambda: read(ids[:, :READ_BLOCK]), 1
    yield "generating a token", lambda: read(ids[:, :1]), 8
    batch = text_batch(ids[:, :tokens], max(tokens - shape.window, 1))
    with step_of(model) as step:
        yield f"a training step on {tokens} tokens", lambda: step(batch), 1


def profiled(work: Callable[[], Any], device: str) -> tuple[dict[str, float], float]:
    """Seconds by group, and of the wall clock, while the profiler watches."""
    activities = [ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as watched:
        wall = timed(work, 1, 0, device).median
        wait(device)
    seconds: defaultdict[str, float] = defaultdict(float)
    for event in watched.key_averages():
        if device == "cuda":
            # Annotations span kernels that count already.
            spans = getattr(event, "is_user_annotation", False)
            if event.device_type == DeviceType.CUDA and not spans:
                seconds[kernel_group(event.key)] += event.self_device_time_total / 1e6
        else:
            seconds[op_group(event.key)] += event.self_cpu_time_total / 1e6
    return dict(seconds), wall


def profile_rows(found: Iterator[Work], device: str, runs: int = 5) -> Iterator[dict[str, Any]]:
    """A row for each work: seconds, and the share of every group."""
    for name, work, times in found:
        plain: Timing = timed(_often(work, times), runs, 1, device)
        seconds, wall = profiled(_often(work, times), device)
        # Kernels of several streams may run together; then the GPU was not idle.
        whole = max(wall, sum(s for group, s in seconds.items() if group != OUTSIDE))
        row: dict[str, Any] = {
            "work": name,
            "seconds": plain.times(1 / times),
            "seconds, watched": wall / times,
        }
        for group, share in shares(seconds, whole).items():
            # Kernels are a GPU's, and views none.
            if group != (VIEWS if device == "cuda" else FUSED):
                shown = IDLE if device == "cuda" and group == OUTSIDE else group
                row[shown] = f"{share:.1%}"
        yield row


def _often(work: Callable[[], Any], times: int) -> Callable[[], None]:
    def repeat() -> None:
        for _ in range(times):
            work()

    return repeat


def upright(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Groups as rows and works as columns: easier to read."""
    columns = [key for key in rows[0] if key != "work"]
    return [{"": key, **{row["work"]: row[key] for row in rows}} for key in columns]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shape", choices=SHAPES, help="default: SmolLM2, on a GPU Qwen3-0.6B")
    parser.add_argument("--tokens", type=int, default=2048, help="of a training step")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--runs", type=int, default=5)
    add_options(parser, "where_time_goes")
    options = parser.parse_args()
    name = options.shape or ("smollm2" if options.device == "cpu" else "qwen3-0.6b")
    shape = SHAPES["tiny" if options.quick else name]
    tokens = 256 if options.quick else options.tokens
    runs = 1 if options.quick else options.runs
    dtype = getattr(torch, options.dtype)
    found = works(shape, options.device, dtype, tokens)
    rows = []
    for row in profile_rows(found, options.device, runs):
        print(row, flush=True)
        rows.append(row)
    title = "Where the time goes"
    sizes = f"window {shape.window}, sinks {shape.sinks}, chunk {shape.chunk}"
    notes = [
        f"{shape.title} with random weights, {options.dtype}, {sizes}.",
        f"Seconds of one block, token or step: median of {runs} runs (fastest–slowest).",
        "Shares are of the watched run, and add up to 100 %.",
        "Dispatch: what operations spend that only call others, beside those.",
    ]
    record(options.name, title, upright(rows), notes, (), options, options.device)


if __name__ == "__main__":
    main()
