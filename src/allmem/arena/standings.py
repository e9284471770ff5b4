"""What the jobs of an arena have come to so far, and whether everybody had the same."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from allmem.arena.contenders import Contender
from allmem.arena.figures import Figure, difference, mean, probability
from allmem.arena.jobs import Job
from allmem.arena.significance import holm
from allmem.errors import AllMemError
from allmem.evaluation.bootstrap import Score

__all__ = ["TESTED_SEEDS", "Standing", "chances", "gather"]

TESTED_SEEDS = 3
"""Below which a difference is not called one."""


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
    router_load: dict[int | None, dict[str, list[float]]] = field(default_factory=dict)
    """Of a routed memory, by seed and layer: the share of all writes that every part got."""
    made_with: set[str] = field(default_factory=set)
    """Versions and devices."""

    def seeds(self, name: str) -> list[Figure]:
        """A figure, seed by seed."""
        return [figures[name] for figures in self.figures.values() if name in figures]

    def score(self, name: str) -> Score:
        """Its mean and interval; nothing of one that diverged with any seed, since those that are
        left are the lucky ones."""
        return mean([] if self.diverged else self.seeds(name))

    def more_than(self, other: Standing, name: str) -> Score:
        """The paired difference, with its interval; nothing where either diverged."""
        return difference(*self.paired(other, name))

    def paired(self, other: Standing, name: str) -> tuple[list[Figure], list[Figure]]:
        """A figure of both, over the seeds that both have; one without a seed has all."""
        if self.diverged or other.diverged:
            return [], []
        if None in self.figures or None in other.figures:
            return self.seeds(name), other.seeds(name)
        both = [s for s in self.figures if s in other.figures and name in other.figures[s]]
        ours = [s for s in both if name in self.figures[s]]
        return [self.figures[s][name] for s in ours], [other.figures[s][name] for s in ours]


def chances(standings: Sequence[Standing], reference: Standing, name: str) -> dict[str, float]:
    """P-values of all differences from the reference, by contender, after Holm's correction; of
    those with three seeds or more."""
    found = {}
    for one in standings:
        ours, base = one.paired(reference, name)
        seeds = max(len(ours), len(base)) if ours and base else 0
        if one is not reference and seeds >= TESTED_SEEDS:
            found[one.contender.name] = probability(ours, base)
    return holm(found)


def gather(contenders: Sequence[Contender], jobs: Sequence[Job]) -> list[Standing]:
    """Everybody, as far as they have come.

    Raises:
        AllMemError: if jobs that are compared did not have the same teacher, rows, tokens or
            questions.
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
        standing.made_with |= {
            made["made_with"] for made in (trained, evaluated) if made and "made_with" in made
        }
        if trained["diverged"]:
            standing.diverged[job.seed] = trained["diverged"]
            continue
        if job.seed is not None:
            _check_same(same, f"the rows of seed {job.seed}", trained["rows"], job)
            # Where steps are given, of rows of unequal lengths, they are estimated from a seed's
            # own rows.
            _check_same(same, f"tokens of training with seed {job.seed}", trained["tokens"], job)
            training.append(trained["pace"])
            standing.stages = trained["stages"]
        assert evaluated is not None
        _check_same(same, "the questions", evaluated.get("asked"), job)
        figures = [Figure.from_dict(values) for values in evaluated["figures"]]
        if not all(figure.finite for figure in figures):
            standing.diverged[job.seed] = "its answers are not finite"
            continue
        standing.figures[job.seed] = {figure.name: figure for figure in figures}
        if evaluated.get("router_load"):
            standing.router_load[job.seed] = evaluated["router_load"]
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
