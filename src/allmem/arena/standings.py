"""What the jobs of an arena have come to so far, and whether everybody had the same."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from allmem.arena.contenders import Contender
from allmem.arena.figures import Figure, difference, mean
from allmem.arena.jobs import Job
from allmem.errors import AllMemError
from allmem.evaluation.bootstrap import Score

__all__ = ["Standing", "gather"]


@dataclass
class Standing:
    """One contender."""

    contender: Contender
    figures: dict[int | None, dict[str, Figure]] = field(default_factory=dict)
    """By seed and name; of seeds that are done and did not diverge."""
    diverged: dict[int | None, str] = field(default_factory=dict)
    """Why, by seed."""
    missing: list[int | None] = field(default_factory=list)
    """Seeds that are not done."""
    training_pace: float = math.nan
    """Tokens a second, the median over seeds."""
    reading_pace: float = math.nan
    stages: Sequence[str] = ()

    def seeds(self, name: str) -> list[Figure]:
        """A figure, seed by seed."""
        return [figures[name] for figures in self.figures.values() if name in figures]

    def score(self, name: str) -> Score:
        """Its mean and interval."""
        return mean(self.seeds(name))

    def more_than(self, other: Standing, name: str) -> Score:
        """The paired difference, over the seeds that both have; one without a seed has all."""
        if None in self.figures or None in other.figures:
            return difference(self.seeds(name), other.seeds(name))
        both = [s for s in self.figures if s in other.figures and name in other.figures[s]]
        ours = [self.figures[s][name] for s in both if name in self.figures[s]]
        return difference(ours, [other.figures[s][name] for s in both])


def gather(contenders: Sequence[Contender], jobs: Sequence[Job]) -> list[Standing]:
    """Everybody, as far as they have come.

    Raises:
        AllMemError: if jobs that are compared did not have the same teacher, rows or tokens.
    """
    found = {one.name: Standing(one) for one in contenders}
    same: dict[str, tuple[object, str]] = {}
    paces: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in found}
    for job in jobs:
        standing, (training, reading) = found[job.name], paces[job.name]
        trained, evaluated = job.trained(), job.evaluated()
        if trained is None or (evaluated is None and not trained["diverged"]):
            standing.missing.append(job.seed)
            continue
        _check_same(same, "the teacher's weights", trained["base"], job)
        if trained["diverged"]:
            standing.diverged[job.seed] = trained["diverged"]
            continue
        if job.seed is not None:
            _check_same(same, f"the rows of seed {job.seed}", trained["rows"], job)
            _check_same(same, "tokens of training", trained["tokens"], job)
            training.append(trained["pace"])
            standing.stages = trained["stages"]
        assert evaluated is not None
        figures = [Figure.from_dict(values) for values in evaluated["figures"]]
        if not all(figure.finite for figure in figures):
            standing.diverged[job.seed] = "its answers are not finite"
            continue
        standing.figures[job.seed] = {figure.name: figure for figure in figures}
        reading.append(evaluated["pace"])
    for name, (training, reading) in paces.items():
        standing = found[name]
        standing.training_pace = statistics.median(training) if training else math.nan
        standing.reading_pace = statistics.median(reading) if reading else math.nan
    return list(found.values())


def _check_same(same: dict[str, tuple[object, str]], what: str, value: object, job: Job) -> None:
    first, label = same.setdefault(what, (value, job.label))
    if first != value:
        raise AllMemError(
            f"{what} were {first!r} for {label} and {value!r} for {job.label}: they cannot be "
            f"compared. The model or the data has changed since; remove {job.folder} and run the "
            "arena again"
        )
