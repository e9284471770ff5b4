"""What was measured, question by question, and what it comes to over questions and seeds.

A figure holds for every question a weighted sum and its weight; a mean is the sum of the sums over
the sum of the weights. All models of an arena answer the same questions, so two of them are
compared question by question, and seed by seed.

An interval is a percentile bootstrap that draws seeds and questions anew, each with replacement and
independently of the other. Few seeds are drawn from few: of three the interval is rather too
narrow, and the values of the seeds say more.

Letters: S seeds, Q questions, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from allmem.evaluation.bootstrap import LEVEL, RESAMPLES, SEED, Score

__all__ = ["Figure", "difference", "mean", "single"]


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
    """The mean over seeds and questions, with its interval.

    Args:
        seeds: the same figure of every seed, over the same questions.
    """
    scale = seeds[0].scale if seeds else 1.0
    return _score([_table(seeds)] if seeds else [], lambda means: scale * means[0])


def difference(ours: Sequence[Figure], base: Sequence[Figure]) -> Score:
    """How much more one model has than another, with its interval.

    Args:
        ours, base: of the same seeds, or of one without a seed.
    """
    if not ours or not base:
        return _score([], lambda means: means[0])
    seeds = max(len(ours), len(base))
    sides = [_table(list(side) * (seeds // len(side))) for side in (ours, base)]
    scale = ours[0].scale
    return _score(sides, lambda means: scale * (means[0] - means[1]))


def _table(figures: Sequence[Figure]) -> Tensor:
    """[S, Q, 2] float64"""
    rows = [torch.tensor([figure.sums, figure.weights]).T for figure in figures]
    return torch.stack(rows).double()


def _score(tables: Sequence[Tensor], statistic: Callable[[list[Any]], Any]) -> Score:
    if not tables:
        return Score(math.nan, math.nan, math.nan, 0)
    seeds, questions, _ = tables[0].shape
    generator = torch.Generator().manual_seed(SEED)
    by_seed = _drawn(seeds, generator)
    by_question = _drawn(questions, generator)
    points = [_ratio(table.sum((0, 1))) for table in tables]
    # One draw for both sides of a difference.
    drawn = [_ratio(torch.einsum("rs,sqk,rq->rk", by_seed, table, by_question)) for table in tables]
    tail = (1 - LEVEL) / 2
    ends = torch.tensor([tail, 1 - tail], dtype=torch.float64)
    low, high = statistic(drawn).quantile(ends).tolist()
    return Score(float(statistic(points)), low, high, seeds * questions)


def _drawn(count: int, generator: torch.Generator) -> Tensor:
    """How often each of ``count`` is drawn in every resample, [R, count]."""
    draws = torch.randint(count, (RESAMPLES, count), generator=generator)
    times = torch.zeros(RESAMPLES, count, dtype=torch.float64)
    return times.scatter_add_(1, draws, torch.ones_like(draws, dtype=torch.float64))


def _ratio(sums: Tensor) -> Tensor:
    return sums[..., 0] / sums[..., 1]
