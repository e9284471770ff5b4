"""A run that a test kills: writes its losses as they come, one line each.

python -m tests.distill.interrupted FOLDER LOSSES
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from allmem.distill import RandomSizes, Step, distill
from tests.distill.tiny import make_config, make_held_out, make_model, make_rows

SETTINGS: dict[str, Any] = {
    "checkpoint_steps": 1,
    "segment": 16,
    "state_init": "passed",
    "random": RandomSizes(windows=(4, 8, 16), sinks=(0, 1, 2)),
    "batch": 1,
    "accumulate": 2,
}
"""All that a resumed step depends on: drawn sizes, a passed state, several batches to a step."""


def main(folder: str, losses: str) -> None:
    torch.set_num_threads(1)
    model = make_model(dtype=torch.float32, random=False)
    with Path(losses).open("a") as file:

        def write(step: Step) -> None:
            file.write(f"{step.number} {step.stage} {step.loss!r} {step.gradient!r}\n")
            file.flush()
            os.fsync(file.fileno())
            # Time for the test to kill the run at any place of a step.
            time.sleep(0.02)

        config = make_config(**SETTINGS)
        distill(model, make_rows(), make_held_out(2), config, Path(folder), on_step=write)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
