"""A run that a test kills.

python -m tests.evaluation.interrupted FOLDER
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch

from allmem.evaluation.rows import Run
from allmem.evaluation.runner import RunProgress, evaluate
from allmem.evaluation.task import Setting
from tests.evaluation.answering import converted, plain
from tests.evaluation.tasks import Letters

BATCH = 3


def run(folder: Path, **options: Any) -> Run:
    """Two models, two tasks."""
    tasks = [Letters("letters/one"), Letters("letters/two", 7)]
    groups = {"letters": ("letters/one", "letters/two")}
    given = {"batch": BATCH, "groups": groups, "baseline": "plain", **options}
    return evaluate([converted(), plain()], tasks, Setting(), folder, **given)


def main(folder: str) -> None:
    torch.set_num_threads(1)

    def wait(now: RunProgress) -> None:
        # Time for the test to kill the run at any place.
        time.sleep(0.1)

    run(Path(folder), on_progress=wait)


if __name__ == "__main__":
    main(sys.argv[1])
