"""From stored rows to what a model achieved in a task, and means and differences of several tasks.

Everything is made from stored rows alone. How a mean gets its interval is the business of
``allmem.evaluation.bootstrap``.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from allmem.evaluation.bootstrap import (
    Score,
    Scored,
    group_average,
    mean_difference,
    mean_score,
    paired_difference,
)
from allmem.evaluation.rows import Run
from allmem.evaluation.task import Row, Task

__all__ = [
    "Cell",
    "Lengths",
    "Score",
    "Scored",
    "TaskScores",
    "average_of",
    "cells_of",
    "difference_of",
    "group_average",
    "group_difference",
    "mean_score",
    "paired_difference",
    "same_examples",
    "score_rows",
    "task_scores",
    "why_apart",
]

SHARES = 100.0
"""Scale of scores that are shares of something, which may be averaged whatever they are called."""
ONE_SETTING = ("protocol", "sampling", "limit", "quick", "thinking")
"""What tasks must have in common to be averaged."""
BY_LENGTH = "ruler/"
"""Tasks whose lengths are tests of their own: there is no mean over lengths."""

Cell = tuple[tuple[str, str | int | float], ...]
"""A place in a task's table: names and values, in the order of the task."""


@dataclass(frozen=True)
class Lengths:
    """Of what was read and answered, in tokens as measured."""

    prompt_mean: float | None
    """``None`` where nothing was told."""
    prompt_longest: int | None
    new_mean: float | None
    cut: int
    """Rows of which something was cut out."""
    unfinished: int
    """Rows whose answer met the limit."""


@dataclass(frozen=True)
class TaskScores:
    """What a model achieved in a task."""

    label: str
    """Of the model."""
    task: str
    metric: str
    """The one that is reported first."""
    scale: float
    higher_is_better: bool
    scored: Sequence[Scored]
    lengths: Lengths
    bad_rows: Sequence[str] = ()
    """Lines of the data that were left out, with their reasons."""
    header: Mapping[str, Any] = field(default_factory=dict)
    """Of the rows file."""

    @property
    def metrics(self) -> list[str]:
        """All metrics, the first one first."""
        found = dict.fromkeys([self.metric])
        for one in self.scored:
            for part in one.parts:
                found |= dict.fromkeys(part.scores)
        return list(found)

    @functools.cached_property
    def counted(self) -> Sequence[Scored]:
        """What counts where no cell is named: without answers that attention saw itself
        (``beyond: no``), unless there are no others."""
        kept = [
            dataclasses.replace(one, parts=[p for p in one.parts if p.cell.get("beyond") != "no"])
            for one in self.scored
        ]
        return kept if any(one.parts for one in kept) else self.scored

    @property
    def missing(self) -> int:
        """Rows that the task has more of."""
        return max(0, self.header.get("examples", 0) - len(self.scored))

    @functools.cached_property
    def lengths_apart(self) -> dict[Cell, Score]:
        """The means at lengths over which there is no mean, if there are several."""
        found = self.cells("length") if self.task.startswith(BY_LENGTH) else {}
        return found if len(found) > 1 else {}

    @property
    def overall(self) -> Score:
        """The mean of the first metric."""
        return self.score()

    def score(self, metric: str | None = None, where: Mapping[str, Any] | None = None) -> Score:
        """The mean of a metric, over all parts that count or those whose cells have these
        values."""
        scored = self.scored if where else self.counted
        return mean_score(scored, metric or self.metric, self.scale, where)

    def cells(self, *names: str, metric: str | None = None) -> dict[Cell, Score]:
        """Means by cell; with names, by these names only (length, say, over all depths)."""
        found = cells_of(self.scored, names)
        return {cell: self.score(metric, dict(cell)) for cell in found}


def score_rows(task: Task, rows: Iterable[Row]) -> list[Scored]:
    """What rows are worth, by the task's own rules."""
    return [Scored(row["id"], question_of(row), task.parts(row)) for row in rows]


def question_of(row: Row) -> str:
    """The question that a row answers: one answer of several has its ``sample``."""
    return row["id"].rpartition("#")[0] if "sample" in row else row["id"]


def cells_of(scored: Iterable[Scored], names: Sequence[str] = ()) -> list[Cell]:
    """All cells, sorted; parts without any of the names do not count, nor do those without a
    cell."""
    found: dict[Cell, None] = {}
    for one in scored:
        for part in one.parts:
            kept = {k: v for k, v in part.cell.items() if not names or k in names}
            if kept:
                order = names or tuple(kept)
                found[tuple((k, kept[k]) for k in order if k in kept)] = None
    return sorted(found, key=lambda cell: [(k, _rank(v)) for k, v in cell])


def group_difference(pairs: Sequence[tuple[TaskScores, TaskScores]]) -> Score:
    """The mean of several tasks' paired differences.

    Args:
        pairs: of each task, one model's scores and the baseline's.
    """
    return mean_difference([(o.counted, base.counted, o.metric, o.scale) for o, base in pairs])


def average_of(tasks: Sequence[TaskScores]) -> Score:
    """The mean of several tasks' means."""
    return group_average([(one.counted, one.metric, one.scale) for one in tasks])


def difference_of(ours: TaskScores, base: TaskScores) -> Score | None:
    """How much one model has over another, on the rows that both answered; ``None`` if there are
    none, or their examples are not the same."""
    both = {one.id for one in ours.scored} & {one.id for one in base.scored}
    if not both or not same_examples(ours, base):
        return None
    return paired_difference(ours.counted, base.counted, ours.metric, ours.scale)


def same_examples(one: TaskScores, other: TaskScores) -> bool:
    """Whether two models were asked the same: an ``id`` alone does not tell."""
    return one.header.get("fingerprint") == other.header.get("fingerprint")


def why_apart(tasks: Sequence[TaskScores]) -> str | None:
    """Why tasks of one model cannot be averaged; ``None`` if they can."""
    kinds = {(one.scale, one.higher_is_better, one.scale == SHARES or one.metric) for one in tasks}
    if len(kinds) > 1:
        return "their scores are not of one kind"
    for key in ONE_SETTING:
        settings = [(one.header.get("setting") or {}).get(key) for one in tasks]
        if len({json.dumps(value, sort_keys=True) for value in settings}) > 1:
            return f"they were not run with the same {key}"
    return None


def task_scores(run: Run, label: str, task: Task) -> TaskScores:
    """What one model achieved in one task."""
    file = run.rows(label, task.name)
    rows = file.rows()
    return TaskScores(
        label,
        task.name,
        task.metric,
        task.scale,
        task.higher_is_better,
        score_rows(task, rows),
        _lengths(rows),
        run.bad_rows(label, task.name),
        file.header,
    )


def _lengths(rows: Sequence[Row]) -> Lengths:
    prompts = [row["prompt_tokens"] for row in rows if row.get("prompt_tokens") is not None]
    new = [row["new_tokens"] for row in rows if row.get("new_tokens") is not None]
    return Lengths(
        sum(prompts) / len(prompts) if prompts else None,
        max(prompts, default=None),
        sum(new) / len(new) if new else None,
        sum(bool(row.get("cut")) for row in rows),
        sum(row.get("finished") is False for row in rows),
    )


def _rank(value: str | int | float) -> tuple[int, float, str]:
    """Numbers in their order, then texts."""
    return (1, 0.0, value) if isinstance(value, str) else (0, value, "")
