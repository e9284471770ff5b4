"""One of several processes of a run that a test compares with a run of one process.

torchrun --nproc-per-node 2 -m tests.distill.several STRATEGY FOLDER LOSSES
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from allmem.distill import Step, distill
from tests.distill.tiny import make_config, make_held_out, make_model, make_rows

ROWS = 4
"""Of a step, over all processes."""

ZERO_2: dict[str, Any] = {
    "zero_optimization": {"stage": 2},
    "zero_allow_untested_optimizer": True,
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
}


def main(strategy: str, folder: str, losses: str, steps: int = 6, processes: int = 2) -> None:
    """Train a few steps of ``ROWS`` rows and write the losses and the gradients' norms."""
    torch.set_num_threads(1)
    settings: dict[str, Any] = {"stage": "kl", "steps": steps, "checkpoint_steps": 3}
    settings |= {"keep_checkpoints": 2}
    settings |= {"batch": ROWS // processes}
    if strategy == "fsdp":
        settings["fsdp"] = True
    if strategy == "zero":
        file = Path(folder) / "zero_2.json"
        file.write_text(json.dumps(ZERO_2))
        settings["deepspeed"] = str(file)
    if strategy == "ddp-all":
        # Without ``match``, whose errors are normalised within each process's batch.
        settings |= {"stage": "all", "match_share": 0.0}
    found: list[list[float]] = []

    def note(step: Step) -> None:
        found.append([step.number, step.loss, step.gradient, step.alpha])

    model = make_model(dtype=torch.float32)
    outcome = distill(
        model, make_rows(), make_held_out(2), make_config(**settings), Path(folder), on_step=note
    )
    if found:
        result = {"steps": found, "after": outcome.after.memory.kl}
        Path(losses).write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:4])
