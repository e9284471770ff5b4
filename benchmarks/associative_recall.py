"""Objectives and drawn sizes on associative recall, where minutes decide.

    python -m benchmarks.associative_recall

A two-layer teacher (``scripts/train_recall_teacher.py``) is distilled into a window of 32 of 128
tokens and a memory, with everything but one choice equal: what is made small, how the memory
starts, and whether window and chunk are drawn at every step. Accuracy is over all questions, of
which the window alone answers 42 %.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM

import allmem
from allmem.arena.recall import RecallRows
from allmem.config import WindowConfig
from allmem.data.labels import IGNORED
from allmem.data.recall import RecallTask
from allmem.distill import DistillConfig, Objective, RandomSizes, distill
from allmem.models.cache import AllMemCache
from allmem.models.modeling import AllMemForCausalLM
from benchmarks.measure import record

TASK = RecallTask()
TEACHER = Path(__file__).parents[1] / "tests" / "fixtures" / "recall_teacher"
MEMORY: dict[str, Any] = {"step": 0.5, "clip": 4.0}
ANSWERS: dict[str, Any] = {"steps": 200, "batch": 8, "stage": "kl", "kl_lr": 3e-3}
GRID = [(16, 16), (32, 8), (32, 32), (64, 16), (64, 64)]


@torch.no_grad()
def accuracy(model: AllMemForCausalLM, window: int = 32, chunk: int = 32) -> float:
    """Share of right answers on sequences that nobody was trained on."""
    ids, answers = TASK.sample(512, torch.Generator().manual_seed(10**6))
    cache = AllMemCache(model.config, WindowConfig(window, 0), chunk)
    found = model(ids, past_key_values=cache, use_cache=False).logits.argmax(-1)
    return float((found == answers)[answers != IGNORED].float().mean())


def distilled(
    seed: int, memory: dict[str, Any], everything: bool = False, **settings: Any
) -> tuple[AllMemForCausalLM, float]:
    """A student and the seconds that its training took."""
    torch.manual_seed(seed)
    base = LlamaForCausalLM.from_pretrained(TEACHER, dtype=torch.float32).eval()
    model = allmem.convert(base, window=32, sinks=0, chunk=32, memory=memory)
    rows = RecallRows(TASK, seed + 1, everything)
    held_out = [row for row, _ in zip(rows.read(10**7), range(2), strict=False)]
    begin = time.perf_counter()
    config = DistillConfig(**{**ANSWERS, "positions": "all", "seed": seed, **settings})
    distill(model, rows, held_out, config)
    return model, time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    drawn = RandomSizes(windows=(16, 32, 64), sinks=(0,), chunks=(8, 16, 32, 64))
    calibrated = {**MEMORY, "head_dim": 32, "width": 64}
    runs: dict[str, dict[str, Any]] = {
        "forward KL on the answers": {},
        "reverse KL": {"objective": Objective(divergence="reverse_kl")},
        "JSD, beta 0.5": {"objective": Objective(divergence="jsd")},
        "JSD, beta 0.1": {"objective": Objective(divergence="jsd", jsd_beta=0.1)},
        "forward KL and cross-entropy, 1 : 1": {"objective": Objective(ce_weight=1.0)},
        "cross-entropy alone": {"objective": Objective(kl_weight=0.0, ce_weight=1.0)},
        "forward KL, temperature 2": {"objective": Objective(temperature=2.0)},
        "forward KL on every token": {"everything": True},
        "the same, weighted by disagreement (floor 0.1)": {
            "everything": True,
            "disagreement": 0.1,
        },
        "the default memory (step 0.1, clip 1)": {"memory": {}},
        "heads of 32 beside the mean of their group": {"memory": calibrated},
        "the same, calibrated (8 steps)": {"memory": calibrated, "calibrate_steps": 8},
        "window and chunk drawn": {"random": drawn},
    }
    rows: list[dict[str, Any]] = []
    for name, settings in runs.items():
        found: list[float] = []
        seconds = 0.0
        grid: dict[tuple[int, int], list[float]] = {size: [] for size in GRID}
        for seed in range(options.seeds):
            chosen = {"memory": MEMORY, **settings}
            model, took = distilled(seed, **chosen)
            found.append(accuracy(model))
            seconds += took / options.seeds
            for size, scores in grid.items():
                scores.append(accuracy(model, *size))
        row: dict[str, Any] = {
            "run": name,
            "accuracy by seed": ", ".join(f"{a:.3f}" for a in found),
            "seconds": round(seconds, 1),
        }
        for (window, chunk), scores in grid.items():
            row[f"W {window}, C {chunk}"] = round(sum(scores) / len(scores), 3)
        rows.append(row)
        print(row, flush=True)
    note = (
        "200 steps of 8 sequences (205k tokens), rate 3e-3, alpha ten times that, memory step 0.5 "
        "and clip 4 unless said; W 32, C 32, no sinks. Columns at the right: the same checkpoint "
        "read with other sizes."
    )
    record("associative_recall", "Associative recall: objectives and drawn sizes", rows, [note])


if __name__ == "__main__":
    main()
