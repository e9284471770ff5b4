"""Results of one or several runs side by side: a column per model, a row per task.

Figures come from ``allmem.evaluation.scores``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from allmem.evaluation.run_scores import RunScores
from allmem.evaluation.scores import (
    Score,
    TaskScores,
    average_of,
    difference_of,
    group_difference,
    mean_score,
    why_apart,
)
from allmem.evaluation.task import Row

__all__ = ["Column", "Cuts", "Results", "scale_of", "score_of"]


@dataclass(frozen=True)
class Cuts:
    """What truncation took away from the prompts of a model and a task."""

    rows: int
    tokens: float
    """On average, of the rows that were cut."""


@dataclass(frozen=True)
class Column:
    """A model in a report."""

    label: str
    """In the report: its own, and the run's where that is not enough."""
    name: str
    """Its own, in its runs."""
    identity: Mapping[str, Any]
    tasks: dict[str, TaskScores] = field(default_factory=dict)
    rows: dict[str, list[Row]] = field(default_factory=dict)
    """By task, as they were stored."""
    runs: list[RunScores] = field(default_factory=list)

    @property
    def sees(self) -> int | None:
        """Tokens behind which everything is out of its attention's sight, if there are any."""
        window, sinks = self.identity.get("window"), self.identity.get("sinks")
        sees = self.identity.get("sees")
        if sees is None and isinstance(window, int):
            sees = window + (sinks if isinstance(sinks, int) else 0)
        return sees or None

    def beyond(self, task: str) -> int:
        """Rows whose prompts are longer than what the model was made for."""
        known = [
            (row.get("prompt_tokens"), row.get("reach", self.identity.get("reach")))
            for row in self.rows[task]
        ]
        return sum(bool(tokens and reach and tokens > reach) for tokens, reach in known)

    def cuts(self, task: str) -> Cuts:
        """What truncation did."""
        cut = [row["cut"] for row in self.rows[task] if row.get("cut")]
        return Cuts(len(cut), sum(cut) / len(cut) if cut else 0.0)


@dataclass(frozen=True)
class Results:
    """All that a report is made of."""

    runs: Sequence[RunScores]
    columns: Sequence[Column]
    """The one with which the others are compared comes first."""
    tasks: Sequence[str]
    """Those with rows, in the order of the runs."""
    groups: Mapping[str, Sequence[str]]
    warnings: Sequence[str] = ()
    _known: dict[tuple[str, str], Score | None] = field(default_factory=dict)
    """Differences that were worked out already."""

    @property
    def labels(self) -> list[str]:
        """Names of the columns."""
        return [column.label for column in self.columns]

    @property
    def baseline(self) -> Column:
        """What differences are taken from."""
        return self.columns[0]

    def column(self, label: str) -> Column:
        """By its label."""
        return next(column for column in self.columns if column.label == label)

    def of(self, task: str) -> dict[str, TaskScores]:
        """A task's scores by column."""
        return {c.label: c.tasks[task] for c in self.columns if task in c.tasks}

    def any_of(self, task: str) -> TaskScores:
        """The task's metric and scale, which are the same in all columns."""
        return next(iter(self.of(task).values()))

    def expected(self, task: str, label: str) -> int:
        """How many rows a column's answers to a task come to when they are complete: what their
        file says, else the most that any model has."""
        told = self.of(task)[label].header.get("examples")
        had = [len(one.scored) for one in self.of(task).values()]
        return told if isinstance(told, int) else max(had)

    def missing(self, column: Column, tasks: Sequence[str]) -> int:
        """How many rows of tasks a column has not answered yet."""
        own = [task for task in tasks if task in column.tasks]
        return sum(self.expected(t, column.label) - len(column.tasks[t].scored) for t in own)

    def average(self, column: Column, tasks: Sequence[str]) -> Score | None:
        """The mean of several tasks' means, recomputed from rows; ``None`` if one has no rows, or
        something keeps them apart."""
        own = [column.tasks.get(task) for task in tasks]
        found = [one for one in own if one is not None and one.scored]
        if not found or len(found) < len(tasks) or why_apart(found) is not None:
            return None
        return average_of(found)

    def difference(self, column: Column, task: str) -> Score | None:
        """How much a column has over the first, on the rows that both answered; ``None`` if there
        are none."""
        key = column.label, task
        if key not in self._known:
            self._known[key] = self._difference(column, task)
        return self._known[key]

    def _difference(self, column: Column, task: str) -> Score | None:
        ours, base = column.tasks.get(task), self.baseline.tasks.get(task)
        if column is self.baseline or ours is None or base is None:
            return None
        return difference_of(ours, base)

    def average_difference(self, column: Column, tasks: Sequence[str]) -> Score | None:
        """The mean of several tasks' differences; ``None`` unless every task has one and both
        columns have an average."""
        if any(self.average(one, tasks) is None for one in (column, self.baseline)):
            return None
        if any(self.difference(column, task) is None for task in tasks):
            return None
        return group_difference([(column.tasks[task], self.baseline.tasks[task]) for task in tasks])


def scale_of(one: TaskScores, metric: str) -> float:
    """By which a measure is multiplied: nats are no shares, whatever their task's scale."""
    return 1.0 if metric.endswith("nll") else one.scale


def score_of(
    one: TaskScores, metric: str, where: Mapping[str, str | int | float] | None = None
) -> Score:
    """The mean of a measure over all parts that count, or those in some cells."""
    scored = one.scored if where else one.counted
    return mean_score(scored, metric, scale_of(one, metric), where)
