"""What an arena compares, in one YAML file.

``load_arena`` reads it and puts ``key=value`` settings in place of its own values. A key that is
not known is an error that names the nearest one. Who takes part, and at which sizes, is worked out
by ``allmem.arena.entrants`` and ``contenders``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from allmem.choices import Limits
from allmem.config import WindowConfig, check_chunk_fits_window
from allmem.data.recall import RecallTask
from allmem.distill.config import DistillConfig
from allmem.distill.recipe import DataSource
from allmem.errors import AllMemError
from allmem.evaluation.sizes import parse_sizes
from allmem.schema import build_from, check_positive, override, read_yaml

__all__ = ["ArenaConfig", "ArenaSizes", "Entrant", "EvaluationConfig", "load_arena"]


@dataclass(frozen=True)
class ArenaSizes:
    """How everybody reads.

    Raises:
        AllMemError: on sizes that do not fit together.
    """

    window: int
    sinks: int = 0
    chunk: int | None = None
    """Of memories that write in chunks; ``None`` for the window."""

    def __post_init__(self) -> None:
        WindowConfig(self.window, self.sinks)
        check_positive(chunk=self.chunk)
        check_chunk_fits_window(self.steps, self.window)

    @property
    def steps(self) -> int:
        """C."""
        return self.chunk or self.window


@dataclass(frozen=True)
class Entrant:
    """One that takes part.

    Raises:
        AllMemError: if an ablation is given a mixer of its own.
    """

    mixer: str | None = None
    """A registered name; ``None`` for the entrant's own name."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of the mixer, in place of its own. Sizes that are named here are not solved for."""
    pattern: str | None = None
    """Which layers have it, as in ``allmem convert --mixers``; ``None`` for all. What stands beside
    it may be ``window`` or ``full``."""
    keep_full: tuple[int, ...] = ()
    """Layers that keep full attention."""
    ablation: str | None = None
    """A name in ``allmem.mixers.ablations``: the reference with one thing changed, and with
    ``options`` besides."""
    match: bool = True
    """Whether its sizes are solved for; else they are its own, and only compared."""

    def __post_init__(self) -> None:
        if self.ablation is not None and self.mixer is not None:
            raise AllMemError(
                f"ablation = {self.ablation!r} is of the reference, so it goes without a mixer "
                f"(found {self.mixer!r})"
            )


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured of everybody.

    Raises:
        AllMemError: on a number that is not positive.
    """

    sequences: int = 512
    """Of associative recall, never trained on."""
    grid: tuple[str, ...] = ()
    """Other sizes to read with, as ``window/sinks/chunk``: the same checkpoint, read otherwise.
    Without a chunk, ``window/sinks``, chunks stay as they are, up to the window. Not of entrants
    whose window is one of their own."""
    tasks: tuple[str, ...] = ()
    """Of ``allmem evaluate``, for language models."""
    limit: int | None = None
    """Examples of each."""
    lengths: tuple[int, ...] = ()
    """Of tasks that are made at a length."""
    quick: bool = False
    """The smallest form of a task that still says something."""
    batch: int = 8
    length: int | None = None
    """Tokens at which states are counted and reading is timed; ``None`` for the longest row."""

    def __post_init__(self) -> None:
        check_positive(
            sequences=self.sequences, limit=self.limit, batch=self.batch, length=self.length
        )
        check_positive(**{f"lengths: {i}": n for i, n in enumerate(self.lengths)})


@dataclass(frozen=True)
class ArenaConfig:
    """A whole arena. See ``docs/arena.md`` for every key.

    Raises:
        AllMemError: on values that do not fit together.
    """

    teacher: str
    """The model that all are converted from, with full attention: a hub name, a folder, a GGUF
    file, or ``smollm2``."""
    output: str
    sizes: ArenaSizes
    training: DistillConfig
    """The same for everybody; ``seed`` is that of the job."""
    recall: RecallTask | None = None
    """Associative recall, made as it is read; or"""
    data: DataSource | None = None
    """what a recipe of ``allmem distill`` may name."""
    entrants: dict[str, Entrant | None] = field(default_factory=dict)
    include: tuple[Literal["mixers", "evicted", "ablations"], ...] = ()
    """Beside those that are listed all registered mixers; of all memories that write every token
    the same with ``write_scope = evicted``; all ablations."""
    exclude: tuple[str, ...] = ()
    """But not these."""
    reference: str = "allmem"
    """The entrant whose sizes the others take and that they are compared with."""
    limits: Limits = field(default_factory=Limits)
    """Largest differences from it: shares of its parameters and of its state."""
    unmatched: tuple[Literal["parameters", "state"], ...] = ()
    """What may differ by more; the report says so."""
    seeds: tuple[int, ...] = (0, 1, 2)
    special_stages: bool = False
    """Let memories that have them start with the stages ``calibrate`` and ``solve``, which others
    do not have; they train for as many steps instead."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    dtype: str | None = None
    """Precision of the frozen weights and of the computation; ``None``: as saved."""
    device: str | None = None
    """``None`` for the GPU, if there is one."""
    modules: tuple[str, ...] = ()
    """Python modules that register mixers of one's own, imported first."""

    def __post_init__(self) -> None:
        if (self.recall is None) == (self.data is None):
            raise AllMemError("give one of recall and data: what is learned")
        if self.data is not None and self.data.on_policy is not None:
            raise AllMemError(
                "data.on_policy makes other rows for every entrant, and an arena trains all of "
                "them on the same; collect responses once (`allmem collect`) and name them"
            )
        if not self.entrants and not self.include:
            raise AllMemError("nobody takes part; name entrants, or include: [mixers]")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise AllMemError(f"seeds = {list(self.seeds)} must be at least one, and all different")
        if self.training.minutes is not None:
            raise AllMemError(
                "training.minutes gives slow memories fewer tokens than fast ones; give steps or "
                "tokens"
            )
        if self.training.random is not None:
            raise AllMemError(
                "training.random draws other sizes than those that states are matched at; leave it "
                "out, and read with other sizes in evaluation.grid"
            )
        special = self.training.calibrate_steps or self.training.stage in ("all", "solve")
        if special and not self.special_stages:
            raise AllMemError(
                f"training.stage = {self.training.stage!r} and training.calibrate_steps = "
                f"{self.training.calibrate_steps} hold stages that only the paper's memory has; "
                "choose stage: kl without calibrating, or allow them with special_stages: true"
            )
        for sizes in self.evaluation.grid:
            parse_sizes(sizes)
        if self.evaluation.tasks and self.recall is not None:
            raise AllMemError("evaluation.tasks are for language models; recall has no words")

    @property
    def length(self) -> int | None:
        """Tokens at which states are counted; ``None`` if the rows have to be looked at."""
        if self.evaluation.length is not None:
            return self.evaluation.length
        return None if self.recall is None else self.recall.length

    def named(self) -> dict[str, Entrant]:
        """The entrants that are listed."""
        return {name: entrant or Entrant() for name, entrant in self.entrants.items()}

    def to_dict(self) -> dict[str, Any]:
        """For JSON; ``from_dict`` reads it."""
        values = dataclasses.asdict(self)
        values["entrants"] = {n: e and dataclasses.asdict(e) for n, e in self.entrants.items()}
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str = "arena") -> ArenaConfig:
        """From keys and values as a file has them.

        Raises:
            AllMemError: on what does not fit, naming the key.
        """
        return build_from(cls, values, where)


def load_arena(source: str | Path, settings: Iterable[str] = ()) -> ArenaConfig:
    """An arena from a YAML file.

    Args:
        settings: ``key=value`` each, in place of the file's; ``training.steps=10`` reaches inside.

    Raises:
        AllMemError: if there is no such file, or it holds what an arena refuses.
    """
    return ArenaConfig.from_dict(override(read_yaml(source), settings), str(source))
