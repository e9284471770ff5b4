"""What a user can choose about distillation: small frozen dataclasses; how a budget becomes steps.

Plain Python on purpose, as ``allmem.config``: nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from allmem.distill.sizes import RandomSizes
from allmem.errors import AllMemError, unknown_name
from allmem.schema import check_positive

__all__ = ["DistillConfig", "Objective", "Span", "Stage"]

Stage = Literal["all", "both", "solve", "match", "kl"]
Divergence = Literal["forward_kl", "reverse_kl", "jsd"]
StateInit = Literal["zero", "passed", "noise"]


@dataclass(frozen=True)
class Objective:
    """What the student is asked for at a position: kl_weight · divergence + ce_weight · CE.

    Plain values, so that it can be written as JSON.

    Raises:
        AllMemError: on a value outside its range, naming the value and the remedy.
    """

    divergence: Divergence = "forward_kl"
    """``forward_kl``: KL(p || q) (paper section 3.3.2); ``reverse_kl``: KL(q || p); ``jsd``: the
    generalised Jensen-Shannon divergence β KL(p || m) + (1 - β) KL(q || m), m = β p + (1 - β) q
    (GKD, Agarwal et al. 2024, arXiv:2306.13649, section 2)."""
    jsd_beta: float = 0.5
    """β of ``jsd``."""
    kl_weight: float = 1.0
    ce_weight: float = 0.0
    """Of the cross-entropy with the labels, which no temperature touches. The paper found 1 and 0
    best (section 3.3.2)."""
    temperature: float = 1.0
    """Divides the logits of both models inside the divergence, which is multiplied by its square
    so that its gradient keeps its size (Hinton et al. 2015, arXiv:1503.02531, section 2)."""
    block: int = 256
    """Positions that are worked on together: two fp32 blocks of logits over 150k words stay below
    400 MB."""

    def __post_init__(self) -> None:
        known = get_args(Divergence)
        if self.divergence not in known:
            raise AllMemError(unknown_name("divergence", self.divergence, known))
        if not 0 < self.jsd_beta < 1:
            raise AllMemError(
                f"jsd_beta = {self.jsd_beta} must lie between 0 and 1, where the divergence "
                "vanishes; choose 0.5, or the divergence forward_kl or reverse_kl"
            )
        for name in ("kl_weight", "ce_weight"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise AllMemError(f"{name} = {value} must be 0 or more, and finite")
        if self.kl_weight == self.ce_weight == 0:
            raise AllMemError(
                f"kl_weight = {self.kl_weight} and ce_weight = {self.ce_weight} leave nothing to "
                "learn; make one of the two positive"
            )
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise AllMemError(
                f"temperature = {self.temperature} must be positive and finite; 1 leaves the "
                "predictions as they are"
            )
        if not (isinstance(self.block, int) and self.block >= 1):
            raise AllMemError(f"block = {self.block} must be a whole number of 1 or more")


@dataclass(frozen=True)
class Span:
    """A stage of a run."""

    stage: str
    """``calibrate``, ``solve``, ``match`` or ``kl``."""
    steps: int


@dataclass(frozen=True)
class DistillConfig:
    """How long, at which rates and against what the memories are distilled.

    Raises:
        AllMemError: on a value outside its range, naming the value and the remedy.
    """

    tokens: int | None = None
    """Budget in training tokens; or"""
    steps: int | None = None
    """in steps; or"""
    minutes: float | None = None
    """in minutes of training. How many steps that makes is measured at the beginning, so such a run
    is repeatable only from its own plan (``run.json``)."""
    batch: int = 1
    """Rows per device and backward pass."""
    accumulate: int = 1
    """Backward passes per step."""

    calibrate_steps: int = 0
    """Steps that only look: afterwards every memory head starts beside the one query head of its
    layer that lost most, with centred queries and keys (``allmem.distill.calibrating``)."""
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
    alpha_ratio: float = 10.0
    """Peak rate of alpha, as a multiple of that of the other weights: it starts at zero, and until
    it has left it nothing else gets much of a gradient."""
    alpha_start: float = 0.0
    """Where alpha starts in layers in which it is zero. A memory that holds what the window shows,
    as those that write every token at once, is at zero first learned to be subtracted, and stays
    there (``docs/arena.md``); at one it begins as loud as the attention."""
    weight_decay: float = 0.01
    warmup: float = 0.05
    """Share of a stage in which the rate rises."""
    decay: float = 0.3
    """Share of a stage in which it falls to zero."""
    clip: float = 1.0
    """Largest norm of the outer gradient."""

    objective: Objective = field(default_factory=Objective)
    positions: Literal["beyond", "all"] = "beyond"
    """Which of the learned tokens count: those that are predicted from beyond the window, or all.
    Within the window teacher and student see the same."""
    disagreement: float | None = None
    """Weight tokens by how much teacher and window model disagree; this is the weight where they
    agree, 1 the mean. Costs a third pass. ``None``: all weigh the same."""
    random: RandomSizes | None = None
    """Draw window, sinks and chunk at every step; ``None``: the model's own."""

    segment: int | None = None
    """Read long rows in segments of so many tokens and backpropagate segment by segment: the same
    gradient, with the activations of one segment at a time."""
    truncate: bool = False
    """Cut the gradient between segments (truncated backpropagation through time)."""
    checkpoint_layers: bool = False
    """Gradient checkpointing in every layer: less memory, a third more time."""
    overlap_teacher: bool = False
    """On a GPU, let the teacher read on a stream of its own while the student reads."""
    state_init: StateInit = "zero"
    """Where fast weights begin: at F_0; at the end of the step before (``passed``); or at F_0 with
    noise. The other two teach a memory to go on beyond the trained length (Buitrago and Gu,
    2025)."""
    state_share: float = 0.5
    """Share of the steps that begin from a passed or noisy state; the others train F_0."""
    state_noise: float = 0.1
    """Of every row of F_0, as a share of its norm."""

    seed: int = 0
    checkpoint_minutes: float = 5.0
    """Time between two checkpoints."""
    checkpoint_steps: int | None = None
    """Steps between two checkpoints, in place of the time."""
    keep_checkpoints: int = 1
    """How many to keep, the newest; the end of every stage is kept besides."""
    report_to: tuple[str, ...] = ()
    """``tensorboard``, ``trackio``, and what else transformers reports to."""
    workers: int = 0
    """Processes that read data ahead."""
    deepspeed: str | None = None
    """A DeepSpeed configuration file (ZeRO-2)."""
    fsdp: bool = False
    """Shard the weights over the processes (FSDP2's ``fully_shard``)."""

    def __post_init__(self) -> None:
        budgets = {n: getattr(self, n) for n in ("tokens", "steps", "minutes")}
        if sum(value is not None for value in budgets.values()) != 1:
            given = ", ".join(f"{name} = {value}" for name, value in budgets.items())
            raise AllMemError(f"{given}: give one of the three as the budget")
        if self.stage not in get_args(Stage):
            raise AllMemError(unknown_name("stage", self.stage, get_args(Stage)))
        if self.state_init not in get_args(StateInit):
            raise AllMemError(unknown_name("state_init", self.state_init, get_args(StateInit)))
        positive = (
            *budgets,
            "batch",
            "accumulate",
            "lr",
            "kl_lr",
            "alpha_ratio",
            "clip",
            "segment",
            "state_noise",
            "checkpoint_minutes",
            "checkpoint_steps",
            "keep_checkpoints",
        )
        check_positive(**{name: getattr(self, name) for name in positive})
        for name in (
            "solve_share",
            "match_share",
            "warmup",
            "decay",
            "disagreement",
            "state_share",
        ):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise AllMemError(f"{name} = {value} must lie between 0 and 1")
        if not math.isfinite(self.alpha_start):
            raise AllMemError(f"alpha_start = {self.alpha_start} must be finite")
        for name in ("weight_decay", "workers", "calibrate_steps"):
            if getattr(self, name) < 0:
                raise AllMemError(f"{name} = {getattr(self, name)} must be 0 or more")
        if self.truncate and self.segment is None:
            raise AllMemError("truncate = true needs segment: how many tokens to cut after")
        if self.overlap_teacher and (self.fsdp or self.deepspeed):
            raise AllMemError(
                "overlap_teacher = true does not go with fsdp or deepspeed, which have streams of "
                "their own"
            )
        if self.fsdp and self.deepspeed:
            raise AllMemError("fsdp and deepspeed: choose one")
        if self.fsdp and (self.segment is not None or self.state_init != "zero"):
            raise AllMemError("fsdp = true does not go with segment or state_init; use DDP or ZeRO")

    def rows_per_step(self, processes: int) -> int:
        """Rows that a step reads, over all processes."""
        return self.batch * self.accumulate * processes

    def spans(self, steps: int, solvable: bool = True) -> list[Span]:
        """The stages of a run of ``steps`` steps; calibrating comes first and on top of them.

        Args:
            solvable: whether ``all`` has anything to solve.
        """
        spans = [Span("calibrate", self.calibrate_steps)]
        if self.stage not in ("both", "all"):
            return [span for span in [*spans, Span(self.stage, steps)] if span.steps]
        solved = round(steps * self.solve_share) if self.stage == "all" and solvable else 0
        share = self.match_share
        if share is None:
            share = 0.0 if solved else 0.6
        matched = round((steps - solved) * share)
        spans += [
            Span("solve", solved),
            Span("match", matched),
            Span("kl", steps - solved - matched),
        ]
        return [span for span in spans if span.steps]

    def rates(self, stage: str) -> tuple[float, float]:
        """Peak rates of the memory's weights and of alpha in a stage."""
        rate = (self.kl_lr or self.lr / 5) if stage == "kl" else self.lr
        return rate, self.alpha_ratio * rate

    def essence(self) -> dict[str, Any]:
        """What a resumed run must agree on: everything but how it is kept, shown and spread over
        devices."""
        values = dataclasses.asdict(self)
        for name in (
            "batch",
            "accumulate",
            "checkpoint_minutes",
            "checkpoint_steps",
            "keep_checkpoints",
            "report_to",
            "workers",
            "deepspeed",
            "fsdp",
            "overlap_teacher",
        ):
            del values[name]
        return values
