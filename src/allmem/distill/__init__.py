"""Distillation: from a frozen teacher into the memories of its own converted copy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from allmem._lazy import lazily

if TYPE_CHECKING:
    from allmem.distill.config import DistillConfig, Objective
    from allmem.distill.distillation import Distillation
    from allmem.distill.evaluate import Comparison, Score, compare
    from allmem.distill.losses import distillation_loss, forward_kl
    from allmem.distill.progress import Step
    from allmem.distill.rows import FolderRows, ListRows, TextRows
    from allmem.distill.run import Outcome, distill
    from allmem.distill.sizes import RandomSizes
    from allmem.distill.trainer import StageTrainer

__all__ = [
    "Comparison",
    "DistillConfig",
    "Distillation",
    "FolderRows",
    "ListRows",
    "Objective",
    "Outcome",
    "RandomSizes",
    "Score",
    "StageTrainer",
    "Step",
    "TextRows",
    "compare",
    "distill",
    "distillation_loss",
    "forward_kl",
]

__getattr__ = lazily(
    __name__,
    {
        "config": "DistillConfig Objective",
        "distillation": "Distillation",
        "evaluate": "Comparison Score compare",
        "losses": "distillation_loss forward_kl",
        "progress": "Step",
        "rows": "FolderRows ListRows TextRows",
        "run": "Outcome distill",
        "sizes": "RandomSizes",
        "trainer": "StageTrainer",
    },
)
