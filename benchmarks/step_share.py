"""A step of distillation against the FLOPs that it needs at the machine's matrix rate.

    python -m benchmarks.step_share [--device cuda --shape qwen3-0.6b --tokens 8192]

Teacher's pass, student's pass, backward pass and a step of AdamW on a row of random tokens, with
random weights in SmolLM2's shape; the loss counts the tokens beyond the window. What a step needs
is the closed form of ``benchmarks/step_flops.py``; what it computes again to save memory is not
needed. The rate is that of a large product of the same precision, measured in the same run.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from allmem.distill.overlap import has_streams
from benchmarks.measure import Timing, add_options, record, timed
from benchmarks.rates import matrix_rate
from benchmarks.shapes import SHAPES, Shape, converted
from benchmarks.step_flops import step_flops
from benchmarks.targets import Finding
from benchmarks.training_step import step_of, text_batch

__all__ = ["NOTES", "step_row"]

NOTES = [
    "Needed: teacher, student, backward pass and logits; nothing that is computed twice.",
    "Step: median of runs after a warm-up (fastest–slowest), AdamW among it.",
]


def step_row(
    shape: Shape,
    dtype: torch.dtype,
    device: torch.device,
    tokens: int,
    batch: int = 1,
    segment: int | None = None,
    runs: int = 3,
    layers: int | None = None,
    rate_size: int | None = None,
) -> tuple[dict[str, Any], Finding]:
    """A row of the table, and what it says of the target."""
    precision = str(dtype).removeprefix("torch.")
    rate = matrix_rate(dtype, device, rate_size)
    model = converted(shape, dtype, device, layers)
    counted = max(tokens - 1 - shape.window, 1)
    needed = step_flops(model, tokens, counted, batch)
    ids = torch.randint(10, model.config.vocab_size, (batch, tokens), device=device)
    rows = text_batch(ids, counted)
    with step_of(model, segment) as step:
        seconds = timed(lambda: step(rows), runs, 1, device)
    aside: Timing | str = ""
    if has_streams(device):
        with step_of(model, segment, overlapped=True) as step:
            aside = timed(lambda: step(rows), runs, 1, device)
    # Of a machine whose pace changes, the better one.
    rate = max(rate, matrix_rate(dtype, device, rate_size))
    share = needed.total / rate / seconds.median
    row = {
        "shape": shape.title,
        "dtype": precision,
        "rows": f"{batch} x {tokens}",
        "segment": segment or "none",
        "matrix rate (GFLOP/s)": rate / 1e9,
        "needed (GFLOP)": needed.total / 1e9,
        "teacher": f"{needed.teacher / needed.total:.0%}",
        "student": f"{needed.student / needed.total:.0%}",
        "backward": f"{needed.backward / needed.total:.0%}",
        "logits": f"{needed.head / needed.total:.0%}",
        "step (s)": seconds,
        **({"with the teacher aside (s)": aside} if aside else {}),
        "tokens/s": batch * tokens / seconds.median,
        "of the matrix rate": f"{share:.1%}",
    }
    case = f"{shape.title}, {precision}, {batch} x {tokens} tokens, {device.type}"
    return row, Finding("step", case, share)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shape", choices=SHAPES, default="smollm2")
    parser.add_argument("--tokens", type=int, default=2048, help="of a row")
    parser.add_argument("--batch", type=int, default=1, help="rows")
    parser.add_argument("--segment", type=int)
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--runs", type=int, default=3)
    add_options(parser, "step_share")
    options = parser.parse_args()
    torch.manual_seed(0)
    quick = options.quick
    rows, findings = [], []
    for name in options.dtypes.split(","):
        row, finding = step_row(
            SHAPES["tiny" if quick else options.shape],
            getattr(torch, name),
            torch.device(options.device),
            200 if quick else options.tokens,
            options.batch,
            options.segment,
            1 if quick else options.runs,
            rate_size=128 if quick else None,
        )
        print(row, flush=True)
        rows.append(row)
        findings.append(finding)
    title = "A step of distillation against what it needs"
    record(options.name, title, rows, NOTES, findings, options, options.device)


if __name__ == "__main__":
    main()
