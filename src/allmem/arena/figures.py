"""What was measured, question by question, and what it comes to over questions and seeds.

A figure holds for every question a weighted sum and its weight; a mean is the sum of the sums over
the sum of the weights. All models of an arena answer the same questions, so two of them are
compared question by question, and seed by seed.

Over two seeds or more an interval is Student's t interval of the seeds' means, and of a difference
that of the seeds' differences: what one would find with other seeds, asked the same questions. What
has one seed, or none, has a percentile bootstrap interval over questions alone.

Letters: S seeds, Q questions, R resamples.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from allmem.arena.significance import t_quantile, t_within
from allmem.evaluation.bootstrap import LEVEL, RESAMPLES, SEED, Score

__all__ = ["ROUNDING", "Figure", "difference", "mean", "probability", "single"]

ROUNDING = 1e-9
"""A spread below it is that of the arithmetic."""


@dataclass(frozen=True)
class Figure:
    """One thing that was measured of one model."""

    name: str
    sums: Sequence[float]
    """[Q]"""
    weights: Sequence[float]
    """[Q]"""
    unit: str = "%"
    higher_is_better: bool = True

    @property
    def scale(self) -> float:
        """By which it is multiplied in tables."""
        return 100.0 if self.unit == "%" else 1.0

    @property
    def finite(self) -> bool:
        """Whether it is a number at all."""
        return math.isfinite(sum(self.sums))

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "sums": list(self.sums), "weights": list(self.weights)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Figure:
        return cls(**values)


def single(figure: Figure) -> float:
    """The mean of one model, scaled."""
    return figure.scale * sum(figure.sums) / sum(figure.weights)


def mean(seeds: Sequence[Figure]) -> Score:
    """The mean over seeds, with its interval.

    Args:
        seeds: the same figure of every seed, over the same questions.
    """
    if len(seeds) > 1:
        return _over_seeds([single(figure) for figure in seeds], seeds[0])
    return _over_questions(seeds, lambda means: means[0])


def difference(ours: Sequence[Figure], base: Sequence[Figure]) -> Score:
    """How much more one model has than another, with its interval.

    Args:
        ours, base: of the same seeds, or of one without a seed.
    """
    if not ours or not base:
        return _over_questions([], lambda means: means[0])
    if max(len(ours), len(base)) > 1:
        return _over_seeds(_differences(ours, base), ours[0])
    return _over_questions([ours[0], base[0]], lambda means: means[0] - means[1])


def probability(ours: Sequence[Figure], base: Sequence[Figure]) -> float:
    """Of a mean difference as large by accident: the p-value of the two-sided paired t test.

    Seeds that differ by the same, all of them, leave nothing to test with: 1.

    Args:
        ours, base: of the same seeds, at least two, or of one without a seed.
    """
    found = _differences(ours, base)
    spread = statistics.stdev(found)
    if spread <= ROUNDING:
        return 1.0
    t = abs(statistics.fmean(found)) * math.sqrt(len(found)) / spread
    return max(0.0, 1 - t_within(t, len(found) - 1))


def _differences(ours: Sequence[Figure], base: Sequence[Figure]) -> list[float]:
    """Seed by seed; one without a seed is compared with every one."""
    seeds = max(len(ours), len(base))
    sides = [[single(figure) for figure in side] * (seeds // len(side)) for side in (ours, base)]
    return [own - other for own, other in zip(*sides, strict=True)]


def _over_seeds(values: Sequence[float], figure: Figure) -> Score:
    """Of two seeds or more."""
    seeds = len(values)
    middle, spread = statistics.fmean(values), statistics.stdev(values)
    half = t_quantile(LEVEL, seeds - 1) * spread / math.sqrt(seeds) if spread > ROUNDING else 0.0
    return Score(middle, middle - half, middle + half, seeds * len(figure.sums))


def _over_questions(figures: Sequence[Figure], statistic: Callable[[list[Any]], Any]) -> Score:
    """Of one model, or of two that are asked the same."""
    if not figures:
        return Score(math.nan, math.nan, math.nan, 0)
    scale = figures[0].scale
    tables = [torch.tensor([one.sums, one.weights], dtype=torch.float64).T for one in figures]
    questions = len(tables[0])
    generator = torch.Generator().manual_seed(SEED)
    draws = torch.randint(questions, (RESAMPLES, questions), generator=generator)
    times = torch.zeros(RESAMPLES, questions, dtype=torch.float64)
    times.scatter_add_(1, draws, torch.ones_like(draws, dtype=torch.float64))
    points = [_ratio(table.sum(0)) for table in tables]
    # One draw for both sides of a difference.
    drawn = [_ratio(times @ table) for table in tables]
    tail = (1 - LEVEL) / 2
    ends = torch.tensor([tail, 1 - tail], dtype=torch.float64)
    low, high = (scale * statistic(drawn)).quantile(ends).tolist()
    return Score(float(scale * statistic(points)), low, high, questions)


def _ratio(sums: Tensor) -> Tensor:
    return sums[..., 0] / sums[..., 1]
