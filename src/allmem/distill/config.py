"""What a user can choose about distillation: a frozen dataclass; how a budget becomes progress.

Plain Python on purpose, as ``allmem.config``: nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from allmem.errors import AllMemError, unknown_name

__all__ = ["DistillConfig", "Stage"]

Stage = Literal["all", "both", "solve", "match", "kl"]


@dataclass(frozen=True)
class DistillConfig:
    """How long, on what, and at which rates the memories are distilled.

    Raises:
        AllMemError: on a value outside its range, naming the value and the remedy.
    """

    tokens: int | None = None
    """Budget in training tokens; or"""
    minutes: float | None = None
    """in minutes of training. A run with this budget is not repeatable to the bit: how far it gets
    depends on the machine."""
    length: int = 1024
    """Tokens of a training sequence."""
    batch: int = 1
    """Sequences per step."""
    stage: Stage = "all"
    """``solve``: each layer's output projection in closed form; ``match``: each layer alone, by
    gradient descent; ``kl``: end to end; ``both``: match, then kl; ``all``: all three."""
    solve_share: float = 0.3
    """Share of the budget that ``all`` gives to ``solve``; of mixers that it can solve."""
    match_share: float | None = None
    """Share of the rest for ``match``; ``None`` for 0.6 of ``both`` and nothing of ``all``: after
    solving, the same tokens brought more end to end (``docs/notes/distillation.md``)."""
    lr: float = 1e-3
    """Peak rate of the memory's weights when matching."""
    kl_lr: float | None = None
    """Peak rate end to end; ``None`` for a fifth of ``lr``, which suits steps of a thousand
    tokens."""
    alpha_lr: float | None = None
    """Peak rate of alpha when matching, and in proportion end to end; ``None`` for ten times that
    of the other weights."""
    weight_decay: float = 0.01
    warmup: float = 0.05
    """Share of a stage in which the rate rises."""
    decay: float = 0.3
    """Share of a stage in which it falls to zero."""
    clip: float = 1.0
    """Largest norm of the outer gradient."""
    seed: int = 0
    checkpoint_minutes: float = 5.0
    """Time between two checkpoints."""
    checkpoint_steps: int | None = None
    """Steps between two checkpoints, in place of the time."""

    def __post_init__(self) -> None:
        if (self.tokens is None) == (self.minutes is None):
            raise AllMemError(
                f"tokens = {self.tokens} and minutes = {self.minutes}: give one of the two as the "
                "budget"
            )
        if self.stage not in get_args(Stage):
            raise AllMemError(unknown_name("stage", self.stage, get_args(Stage)))
        positive = (
            "tokens",
            "minutes",
            "length",
            "batch",
            "lr",
            "kl_lr",
            "alpha_lr",
            "clip",
            "checkpoint_minutes",
            "checkpoint_steps",
        )
        for name in positive:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise AllMemError(f"{name} = {value} must be positive")
        for name in ("solve_share", "match_share", "warmup", "decay"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise AllMemError(f"{name} = {value} must lie between 0 and 1")
        if self.weight_decay < 0:
            raise AllMemError(f"weight_decay = {self.weight_decay} must be 0 or more")

    def stages(self, solvable: bool = True) -> list[tuple[str, float, float]]:
        """(name, begin, end) of the stages, in progress through the whole budget.

        Args:
            solvable: whether ``all`` has anything to solve.
        """
        if self.stage not in ("both", "all"):
            return [(self.stage, 0.0, 1.0)]
        solved = self.solve_share if self.stage == "all" and solvable else 0.0
        share = self.match_share
        if share is None:
            share = 0.0 if solved else 0.6
        matched = solved + (1 - solved) * share
        spans = [("solve", 0.0, solved), ("match", solved, matched), ("kl", matched, 1.0)]
        return [span for span in spans if span[2] > span[1]]

    def rates(self, stage: str) -> tuple[float, float]:
        """Peak rates of the memory's weights and of alpha in a stage."""
        rate = (self.kl_lr or self.lr / 5) if stage == "kl" else self.lr
        scale = rate / self.lr
        return rate, self.alpha_lr * scale if self.alpha_lr else 10 * rate

    def progress(self, tokens: int, seconds: float) -> float:
        """Share of the budget that is spent, up to 1."""
        if self.tokens is not None:
            return min(tokens / self.tokens, 1.0)
        assert self.minutes is not None
        return min(seconds / (60 * self.minutes), 1.0)

    def essence(self) -> dict[str, Any]:
        """What a resumed run must agree on: everything but the checkpoints."""
        values = dataclasses.asdict(self)
        del values["checkpoint_minutes"], values["checkpoint_steps"]
        return values
