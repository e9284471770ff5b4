"""How time and memory grow, measured: one size after the other doubled, the others held.

    python -m benchmarks.doubling [--device cuda] [--only T,B]

A small decoder with random weights reads a text (prefill) and takes a training step, with T tokens,
B rows, H memory heads of a size that stays, h their network's width, C the chunk, and its layers,
each doubled several times. Measured are seconds (the fastest of several runs, which a disturbed
machine falsifies least) and the most memory that the work had above what was there before.

What grows like a power of the size has an exponent, the slope of the logarithms by least squares:
1 if it doubles, 0 if it stays. Beside each stands the exponent of the closed form over the same
sizes (FLOPs; bytes of the state; bytes of a training step), and that of the last doubling alone,
where what does not grow weighs least. Each size is measured in a process of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import Qwen3Config

from allmem.cost.flops import readings
from allmem.cost.training import training_memory
from allmem.models.cache import AllMemCache
from benchmarks.measure import add_options, record, timed
from benchmarks.occupied import ENVIRONMENT, forget_peak, peak
from benchmarks.shapes import Shape, converted
from benchmarks.step_flops import step_flops
from benchmarks.training_step import step_of, text_batch

MB = 1e6


@dataclass(frozen=True)
class Sizes:
    """Everything that is doubled."""

    T: int = 2048
    B: int = 1
    H: int = 4
    h: int = 64
    C: int = 256
    layers: int = 4
    hidden: int = 256
    window: int = 512

    def shape(self) -> Shape:
        sizes = {
            "vocab_size": 512,
            "hidden_size": self.hidden,
            "intermediate_size": 2 * self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": self.hidden // 4,
            "max_position_embeddings": 1 << 20,
            "tie_word_embeddings": True,
        }
        memory = {"heads": self.H, "head_dim": self.hidden // 4, "width": self.h}
        title = f"a Qwen3 of {self.layers} layers"
        return Shape(title, Qwen3Config, sizes, self.window, 4, self.C, memory)


AXES = {
    "B": (1, 2, 4, 8),
    "H": (4, 8, 16, 32),
    "h": (64, 128, 256, 512),
    "C": (64, 128, 256, 512),
    "layers": (2, 4, 8, 16),
}
WORKS = {
    "prefill": {"T": (2048, 4096, 8192, 16384), **AXES},
    "training step": {"T": (1024, 2048, 4096, 8192), **AXES},
}
"""What each size is doubled through. A teacher attends to all tokens, so long rows train slowly."""
TINY = Sizes(T=256, hidden=32, window=64, C=32, h=8)
QUICK = {"T": (256, 512)}


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The e of values that go like size^e: the least-squares slope of their logarithms; not a
    number where a value is zero or less.

    Raises:
        ValueError: if there are not two different sizes, or not as many values.
    """
    if len(sizes) != len(values) or len(set(sizes)) < 2:
        raise ValueError(f"{len(set(sizes))} sizes and {len(values)} values have no slope")
    if min(values) <= 0:
        return math.nan
    x, y = ([math.log(number) for number in numbers] for numbers in (sizes, values))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return above / sum((a - mean_x) ** 2 for a in x)


def expected(work: str, sizes: Sizes) -> dict[str, float]:
    """Closed forms: FLOPs, and bytes of what is kept (prefill) or needed (step)."""
    with torch.device("meta"):
        model = converted(sizes.shape(), torch.float32, "meta")
    if work == "prefill":
        reading = readings(model)[2]
        flops = sizes.B * sum(reading.prefill(sizes.T).values())
        return {"seconds": flops, "bytes": sizes.B * reading.state_bytes(sizes.T, torch.float32)}
    parts = training_memory(model.config, sizes.T, sizes.B, torch.float32, counted=_counted(sizes))
    flops = step_flops(model, sizes.T, _counted(sizes), sizes.B).total
    return {"seconds": flops, "bytes": parts.total - parts.held + parts.gradients}


def _counted(sizes: Sizes) -> int:
    return sizes.T // 2


def measured(work: str, sizes: Sizes, device: str, runs: int) -> dict[str, float]:
    """Seconds, and bytes at most above those before the work."""
    torch.manual_seed(0)
    model = converted(sizes.shape(), torch.float32, device)
    ids = torch.randint(10, 500, (sizes.B, sizes.T), device=device)

    def read() -> None:
        with torch.no_grad():
            model(
                input_ids=ids,
                past_key_values=AllMemCache(model.config),
                use_cache=True,
                logits_to_keep=1,
            )

    def both(run: Any) -> dict[str, float]:
        run()
        gc.collect()
        before = forget_peak(device)
        run()
        above = peak(device) - before
        return {"seconds": timed(run, runs, 0, device).fastest, "bytes": above}

    if work == "prefill":
        return both(read)
    batch = text_batch(ids, _counted(sizes))
    with step_of(model) as step:
        return both(lambda: step(batch))


def in_process(work: str, sizes: Sizes, device: str, runs: int) -> dict[str, float]:
    """``measured`` in a process of its own."""
    case = json.dumps({"work": work, "sizes": asdict(sizes), "device": device, "runs": runs})
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.doubling", "--one", case],
        env=os.environ | ENVIRONMENT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def study(
    work: str, axis: str, values: Sequence[int], base: Sizes, device: str, runs: int
) -> dict[str, Any]:
    """A row: one size doubled through ``values``."""
    cases = [dataclasses.replace(base, **{axis: value}) for value in values]
    formulas = [expected(work, case) for case in cases]
    found = [in_process(work, case, device, runs) for case in cases]
    row: dict[str, Any] = {
        "work": work,
        "doubled": axis,
        "from - to": f"{values[0]} - {values[-1]}",
    }
    for what, unit, name in (("seconds", 1.0, "seconds"), ("bytes", MB, "peak (MB)")):
        points = [one[what] for one in found]
        closed = exponent(values, [one[what] for one in formulas])
        row[name] = ", ".join(f"{point / unit:.3g}" for point in points)
        row[f"{what}: exponent"] = f"{exponent(values, points):.2f}"
        row[f"{what}: last doubling"] = f"{exponent(values[-2:], points[-2:]):.2f}"
        row[f"{what}: closed form"] = f"{closed:.2f}"
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", help="sizes to double, default all: T,B,H,h,C,layers")
    parser.add_argument("--works", default=",".join(WORKS))
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    add_options(parser, "doubling")
    options = parser.parse_args()
    if options.one:
        case = json.loads(options.one)
        print(json.dumps(measured(**{**case, "sizes": Sizes(**case["sizes"])})))
        return
    base = TINY if options.quick else Sizes()
    rows = []
    for work in options.works.split(","):
        axes = QUICK if options.quick else WORKS[work]
        for axis in options.only.split(",") if options.only else axes:
            runs = 1 if options.quick else options.runs
            rows.append(study(work, axis, axes[axis], base, options.device, runs))
            print(rows[-1], flush=True)
    sizes = ", ".join(f"{name} {value}" for name, value in asdict(base).items())
    notes = [
        f"A Qwen3 with random weights, fp32; where not doubled: {sizes}; 4 sinks.",
        "Exponents: least squares over all sizes; of the last doubling alone; of the closed form.",
        "Closed forms: FLOPs for seconds; for bytes `training_memory`, and of a prefill its state.",
        "A prefill reads blocks of 2,048 tokens; its peak has their activations beside the state.",
    ]
    title = "Growth: one size after the other doubled"
    record(options.name, title, rows, notes, (), options, options.device)


if __name__ == "__main__":
    main()
