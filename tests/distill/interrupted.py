"""A run that a test kills: writes its losses as they come, one line each.

python -m tests.distill.interrupted FOLDER LOSSES [--resume]
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch

from allmem.distill.trainer import Step, Trainer
from tests.distill.tiny import make_config, make_model, make_sequences


def main(folder: str, losses: str, resume: bool) -> None:
    torch.set_num_threads(1)
    model = make_model(dtype=torch.float32, random=False)
    config = make_config(checkpoint_steps=1)
    trainer = Trainer(model, make_sequences(), config, Path(folder), resume=resume)
    with Path(losses).open("a") as file:

        def write(step: Step) -> None:
            file.write(f"{step.number} {step.stage} {step.loss!r} {step.gradient!r}\n")
            file.flush()
            os.fsync(file.fileno())
            # Time for the test to kill the run at any place of a step.
            time.sleep(0.02)

        trainer.run(write)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], "--resume" in sys.argv)
