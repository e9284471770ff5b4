"""What one training step needs at most, measured beside the closed form.

    python -m benchmarks.step_memory                      # the cases below, then the whole models
    python -m benchmarks.step_memory --layers 28 --length 24576 --segment 4096 --checkpoint-layers

A step is a forward and a backward pass of ``Distillation`` and a step of AdamW, with random weights
in the shape of Qwen3-0.6B, each in a process of its own. On a GPU the peak is what torch allocated;
on a CPU (Linux) what the system counted as resident, above what was resident before the step.
AdamW's moments are there from the beginning, as in every step but the first.

Then one step under every policy of keeping less of it, timed: what each saves, and what it costs.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

import allmem
from allmem.cost.training import TrainingMemory, training_memory
from allmem.models.configuration import AllMemConfig
from benchmarks.measure import markdown, record, timing_of
from benchmarks.occupied import ENVIRONMENT, forget_peak, peak
from benchmarks.training_step import step_of, text_batch

GB = 1e9
MARGIN = 0.9
"""Share of a GPU that a step may take by the formula."""
WARM_UP = 256
"""Half of the tokens of a step before the measured one, for what a process sets up once."""
RUNS = 3
"""Steps of a policy that are timed."""


@dataclass(frozen=True)
class Case:
    """A step."""

    layers: int = 28
    length: int = 24576
    segment: int | None = None
    checkpoint_layers: bool = False
    scale: float = 1.0
    """Of the width of Qwen3-0.6B: fewer heads, and a hidden size and an MLP in proportion."""
    vocabulary: int = 151936
    counted: int = 512
    """Positions at the end of the row that the loss counts: they cost time, and no memory beyond
    their hidden states."""
    window: int = 4096
    sinks: int = 128
    chunk: int = 2048

    def base(self) -> Qwen3Config:
        heads = max(round(8 * self.scale), 1)
        return Qwen3Config(
            vocab_size=self.vocabulary,
            hidden_size=128 * heads,
            intermediate_size=384 * heads,
            num_hidden_layers=self.layers,
            num_attention_heads=2 * heads,
            num_key_value_heads=heads,
            head_dim=128,
            max_position_embeddings=40960,
            tie_word_embeddings=True,
        )

    def predicted(self) -> TrainingMemory:
        config = AllMemConfig(
            text_config=self.base(),
            window=self.window,
            sinks=self.sinks,
            mixer_options={"allmem": {"chunk": self.chunk}},
        )
        return training_memory(
            config,
            self.length,
            segment=self.segment,
            checkpoint_layers=self.checkpoint_layers,
            counted=self.counted,
        )


CASES = [
    Case(2, 4096),
    Case(2, 4096, checkpoint_layers=True),
    Case(2, 8192, 2048),
    Case(4, 8192, 2048, checkpoint_layers=True),
    *(Case(2, n, 2048, scale=0.25, vocabulary=8000) for n in (8192, 16384, 24576)),
    Case(2, 24576, 2048, True, scale=0.25, vocabulary=8000),
    Case(2, 24576, 4096, False, scale=0.25, vocabulary=8000),
    Case(2, 24576, 4096, True, scale=0.25, vocabulary=8000),
]
POLICIES = [
    Case(4, 8192, segment, checkpointed, 0.5, 8000, window=1024, sinks=64, chunk=1024)
    for segment in (None, 4096, 2048)
    for checkpointed in (False, True)
]
"""The same step, keeping less and less of it."""


def step(case: Case, device: str, timed: int) -> dict[str, Any]:
    """Run a step; bytes before it and at its peak, and its loss. Then ``timed`` more: seconds."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        base = Qwen3ForCausalLM(case.base())
        torch.set_default_dtype(torch.float32)
        model = allmem.convert(base, window=case.window, sinks=case.sinks, chunk=case.chunk)
    ids = torch.randint(case.vocabulary, (case.length,), device=device)
    batch = text_batch(ids[None], case.counted)
    with step_of(model, case.segment, case.checkpoint_layers) as one_step:
        warm_up = text_batch(ids[None, : 2 * WARM_UP], 2 * WARM_UP)
        one_step(warm_up)
        gc.collect()
        before = forget_peak(device)
        loss = one_step(batch)
        highest = peak(device)
        seconds = []
        for _ in range(timed):
            begun = time.perf_counter()
            one_step(batch)
            seconds.append(time.perf_counter() - begun)
        return {
            "before": before,
            "peak": highest,
            "loss": loss / case.counted,
            "seconds": seconds,
        }


def measured(case: Case, device: str, timed: int = 0) -> dict[str, Any]:
    """``step`` in a process of its own: one whose peak can be measured, or a common one, which does
    not give each block of memory back to the system and is faster, where steps are timed."""
    command = [sys.executable, "-m", "benchmarks.step_memory", "--device", device]
    out = subprocess.run(
        [*command, "--one", json.dumps(asdict(case)), "--timed", str(timed)],
        env=os.environ if timed else os.environ | ENVIRONMENT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(out.stdout.splitlines()[-1])


def row(case: Case, found: dict[str, Any]) -> dict[str, Any]:
    """Measured and predicted, in GB above what is there before the step."""
    parts = case.predicted()
    above = (found["peak"] - found["before"]) / GB
    expected = (parts.total - parts.held + parts.gradients) / GB
    return {
        "hidden": case.base().hidden_size,
        "layers": case.layers,
        "tokens": case.length,
        "segment": case.segment or "none",
        "checkpoint_layers": case.checkpoint_layers,
        "measured (GB)": above,
        "formula (GB)": expected,
        "formula / measured": expected / above,
        "loss": found["loss"],
    }


def policies(device: str) -> list[dict[str, Any]]:
    """``POLICIES`` measured: bytes and seconds, beside those of the step that keeps everything."""
    rows: list[dict[str, Any]] = []
    for case in POLICIES:
        found = measured(case, device)
        seconds = timing_of(measured(case, device, RUNS)["seconds"])
        row = {
            "segment": case.segment or "none",
            "checkpoint_layers": case.checkpoint_layers,
            "measured (GB)": (found["peak"] - found["before"]) / GB,
            "seconds": seconds,
        }
        first = rows[0] if rows else row
        row["of all kept, GB"] = row["measured (GB)"] / first["measured (GB)"]
        row["of all kept, seconds"] = seconds.median / first["seconds"].median
        rows.append(row)
        print(row, flush=True)
    return rows


WHOLE = {
    # Hidden size, width of the MLP, heads and KV heads of the published configurations.
    "Qwen3-0.6B": (1024, 3072),
    "Qwen3-1.7B": (2048, 6144),
}


def whole(name: str, segment: int | None, checkpoint_layers: bool) -> dict[str, Any]:
    """The formula's figures for a whole model with a row of 24k tokens."""
    hidden, width = WHOLE[name]
    base = Qwen3Config(
        vocab_size=151936,
        hidden_size=hidden,
        intermediate_size=width,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    )
    config = AllMemConfig(
        text_config=base, window=4096, sinks=128, mixer_options={"allmem": {"chunk": 2048}}
    )
    parts = training_memory(
        config, 24576, segment=segment, checkpoint_layers=checkpoint_layers, counted=24575
    )
    named = {key: round(value / GB, 2) for key, value in asdict(parts).items()}
    total = parts.total / GB
    fits = next((f"{size} GB" for size in (24, 40, 80) if total < size * MARGIN), "no")
    return {
        "model": name,
        "segment": segment or "none",
        "checkpoint_layers": checkpoint_layers,
        "total (GB)": round(total, 1),
        "fits": fits,
        **named,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, help="a case of your own in place of the recorded")
    parser.add_argument("--length", type=int, default=24576)
    parser.add_argument("--segment", type=int, default=None)
    parser.add_argument("--checkpoint-layers", action="store_true")
    parser.add_argument("--scale", type=float, default=1.0, help="of the width of Qwen3-0.6B")
    parser.add_argument("--vocabulary", type=int, default=151936)
    parser.add_argument("--counted", type=int, default=512, help="positions that the loss counts")
    parser.add_argument("--window", type=int, default=4096)
    parser.add_argument("--sinks", type=int, default=128)
    parser.add_argument("--chunk", type=int, default=2048)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--name", default="step_memory")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--timed", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(step(Case(**json.loads(options.one)), options.device, options.timed)))
        return
    cases = CASES
    if options.layers is not None:
        names = [field.name for field in fields(Case)]
        cases = [Case(**{name: getattr(options, name) for name in names})]
    rows = []
    for case in cases:
        rows.append(row(case, measured(case, options.device)))
        print(json.dumps(rows[-1]), flush=True)
    settings = [(None, False), (None, True), (4096, False), (2048, False), (1024, False)]
    settings += [(4096, True), (2048, True)]
    models = [whole(name, *setting) for name in WHOLE for setting in settings]
    how = {
        "cpu": "the resident set's peak above what was resident before the step",
        "cuda": "torch.cuda.max_memory_allocated above what was allocated before the step",
    }
    case, free = cases[0], f"{1 - MARGIN:.0%}"
    sizes = f"window {case.window}, sinks {case.sinks}, chunk {case.chunk}"
    loss = f"forward KL on the last {case.counted} tokens"
    whole_note = (
        "Whole models were not run. By the formula for 24576 tokens, all counted, in GB; `fits` "
        f"leaves {free} of a GPU free:\n\n{markdown(models)}"
    )
    notes = [
        f"Measured: {how[options.device]}; AdamW's moments are there before. GB are 10^9 bytes.",
        "Formula: `training_memory`, without frozen and slow weights and moments.",
        f"bfloat16, one row of one document, {sizes}, full-rank memories, {loss}.",
        "Random weights in the shape of Qwen3-0.6B, or of a quarter of its width and 8000 words.",
        "Resident is more than allocated, which shows at small peaks.",
        whole_note,
    ]
    if options.layers is None:
        same, table = POLICIES[0], markdown(policies(options.device))
        notes.append(
            f"What it costs to keep less of a step: {same.layers} layers of "
            f"{same.base().hidden_size} features, {same.length} tokens, window {same.window}, "
            f"chunk {same.chunk}. Seconds (median of {RUNS}) are of another process than bytes, "
            f"one that does not give memory back at once:\n\n{table}"
        )
    record(options.name, "Memory of one training step", rows, notes)


if __name__ == "__main__":
    main()
