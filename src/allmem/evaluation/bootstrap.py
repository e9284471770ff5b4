"""Means with bootstrap intervals, and paired differences.

The same rows give the same figures to the last digit: resampling draws from a fixed seed. What is
resampled is questions (several answers to one question stay together), since that is what another
test would draw anew. A mean of answers that are all alike has an interval of no width: no
resampling can tell what was never seen.

Letters: Q questions, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from allmem.evaluation.task import Part

__all__ = [
    "Score",
    "Scored",
    "group_average",
    "mean_difference",
    "mean_score",
    "paired_difference",
]

RESAMPLES = 1000
LEVEL = 0.95
SEED = 0
BLOCK = 1 << 22
"""Drawn numbers that are held at once."""


@dataclass(frozen=True)
class Score:
    """A mean and its 95 % bootstrap interval, multiplied by the task's scale already."""

    mean: float
    low: float
    high: float
    n: int
    """Rows that it is a mean of."""


@dataclass(frozen=True)
class Scored:
    """A row and what it is worth."""

    id: str
    question: str
    """Shared by several answers to the same question."""
    parts: Sequence[Part]


def mean_score(
    scored: Sequence[Scored],
    metric: str,
    scale: float = 1.0,
    where: Mapping[str, Any] | None = None,
) -> Score:
    """The weighted mean of a metric and its interval.

    Args:
        where: take only parts whose cell has these values.
    """
    table, rows = _table(scored, metric, where)
    return _score(_means, [_scaled(table, scale)], rows)


def group_average(
    tasks: Sequence[tuple[Sequence[Scored], str, float]],
) -> Score:
    """The mean of several tasks' means; every task's questions are resampled by themselves.

    Args:
        tasks: of each its rows, the metric and the scale.
    """
    tables, rows = [], 0
    for scored, metric, scale in tasks:
        table, found = _table(scored, metric)
        tables.append(_scaled(table, scale))
        rows += found
    return _score(_means, tables, rows)


def paired_difference(
    theirs: Sequence[Scored],
    baseline: Sequence[Scored],
    metric: str,
    scale: float = 1.0,
) -> Score:
    """How much one model has over another, on the rows that both answered; ``n`` counts those."""
    return mean_difference([(theirs, baseline, metric, scale)])


def mean_difference(
    tasks: Sequence[tuple[Sequence[Scored], Sequence[Scored], str, float]],
) -> Score:
    """The mean of several tasks' paired differences.

    Args:
        tasks: of each one model's rows, the baseline's, the metric and the scale.
    """
    tables, rows = [], 0
    for theirs, baseline, metric, scale in tasks:
        table, found = _paired(theirs, baseline, metric)
        tables.append(_scaled(table, scale))
        rows += found
    return _score(_differences, tables, rows)


def _table(
    scored: Iterable[Scored], metric: str, where: Mapping[str, Any] | None = None
) -> tuple[Tensor, int]:
    """Sums of weighted scores and of weights by question, [Q, 2] float64, and of how many rows."""
    sums: dict[str, list[float]] = {}
    rows = 0
    for one in scored:
        counted = [
            part
            for part in one.parts
            if metric in part.scores
            and all(part.cell.get(key) == value for key, value in (where or {}).items())
        ]
        rows += bool(counted)
        for part in counted:
            question = sums.setdefault(one.question, [0.0, 0.0])
            question[0] += part.weight * part.scores[metric]
            question[1] += part.weight
    return torch.tensor(list(sums.values()), dtype=torch.float64).reshape(-1, 2), rows


def _paired(
    theirs: Sequence[Scored], baseline: Sequence[Scored], metric: str
) -> tuple[Tensor, int]:
    """The sums of both by question, [Q, 4], over the rows that both answered, and how many."""
    shared = {one.id for one in theirs} & {one.id for one in baseline}
    (ours, rows), (base, _) = (
        _table([one for one in side if one.id in shared], metric) for side in (theirs, baseline)
    )
    order = [
        list(dict.fromkeys(one.question for one in side if one.id in shared and _has(one, metric)))
        for side in (theirs, baseline)
    ]
    places = {question: i for i, question in enumerate(order[1])}
    kept = [(i, places[question]) for i, question in enumerate(order[0]) if question in places]
    left, right = ([pair[side] for pair in kept] for side in (0, 1))
    return torch.cat([ours[left], base[right]], dim=1), rows


def _has(one: Scored, metric: str) -> bool:
    return any(metric in part.scores for part in one.parts)


def _scaled(table: Tensor, scale: float) -> Tensor:
    """A table whose scores, and not whose weights, are multiplied."""
    return table * torch.tensor([scale, 1.0] * (table.shape[1] // 2), dtype=table.dtype)


def _means(sums: Tensor) -> Tensor:
    """Means from sums [..., 2]"""
    return sums[..., 0] / sums[..., 1]


def _differences(sums: Tensor) -> Tensor:
    """Differences of means from sums [..., 4]"""
    return _means(sums[..., :2]) - _means(sums[..., 2:])


def _score(statistic: Callable[[Tensor], Tensor], tables: Sequence[Tensor], rows: int) -> Score:
    """The mean over tables of a statistic of their sums, and its interval."""
    if not tables or any(len(table) == 0 for table in tables):
        return Score(math.nan, math.nan, math.nan, 0)
    generator = torch.Generator().manual_seed(SEED)
    points = torch.stack([statistic(table.sum(0)) for table in tables])
    drawn = torch.stack([statistic(_resampled(table, generator)) for table in tables])  # [., R]
    tail = (1 - LEVEL) / 2
    ends = torch.tensor([tail, 1 - tail], dtype=torch.float64)
    low, high = drawn.mean(0).quantile(ends).tolist()
    return Score(float(points.mean()), low, high, rows)


def _resampled(table: Tensor, generator: torch.Generator) -> Tensor:
    """Sums over questions drawn with replacement, [R, k], of a table [Q, k]"""
    questions = len(table)
    at_once = max(1, BLOCK // questions)
    sums = []
    for first in range(0, RESAMPLES, at_once):
        draws = min(at_once, RESAMPLES - first)
        drawn = torch.randint(questions, (draws, questions), generator=generator)
        sums.append(table[drawn].sum(1))
    return torch.cat(sums)
