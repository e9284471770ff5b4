"""Distillation: from a frozen teacher into the memories of its own converted copy."""

from allmem.distill.config import DistillConfig
from allmem.distill.evaluate import Comparison, Score, compare
from allmem.distill.losses import forward_kl
from allmem.distill.matching import match_layers
from allmem.distill.trainer import Step, Trainer

__all__ = [
    "Comparison",
    "DistillConfig",
    "Score",
    "Step",
    "Trainer",
    "compare",
    "forward_kl",
    "match_layers",
]
