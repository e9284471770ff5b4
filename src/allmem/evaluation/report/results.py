"""One or several runs as one set of results: a column per model, a row per task.

Figures come from ``allmem.evaluation.scores``; this only puts them side by side, and says where
that would compare what cannot be compared.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from allmem.errors import AllMemError
from allmem.evaluation.scores import (
    RunScores,
    Score,
    TaskScores,
    group_average,
    group_difference,
    mean_score,
    paired_difference,
    run_scores,
)
from allmem.evaluation.task import Row, Task

__all__ = ["Column", "Cuts", "Results", "gather", "scale_of", "score_of"]


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

    def average(self, column: Column, tasks: Sequence[str]) -> Score | None:
        """The mean of several tasks' means, recomputed from rows; ``None`` if one has no rows."""
        own = [column.tasks.get(task) for task in tasks]
        found = [one for one in own if one is not None and one.scored]
        if not found or len(found) < len(tasks):
            return None
        return group_average([(one.scored, one.metric, one.scale) for one in found])

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
        if not {one.id for one in ours.scored} & {one.id for one in base.scored}:
            return None
        return paired_difference(ours.scored, base.scored, ours.metric, ours.scale)

    def average_difference(self, column: Column, tasks: Sequence[str]) -> Score | None:
        """The mean of several tasks' differences; ``None`` unless every task has one."""
        if any(self.difference(column, task) is None for task in tasks):
            return None
        return group_difference([(column.tasks[task], self.baseline.tasks[task]) for task in tasks])


def scale_of(one: TaskScores, metric: str) -> float:
    """By which a measure is multiplied: nats are no shares, whatever their task's scale."""
    return 1.0 if metric.endswith("nll") else one.scale


def score_of(
    one: TaskScores, metric: str, where: Mapping[str, str | int | float] | None = None
) -> Score:
    """The mean of a measure over all parts, or those in some cells."""
    return mean_score(one.scored, metric, scale_of(one, metric), where)


def gather(folders: Sequence[str | Path], known: Mapping[str, Task] | None = None) -> Results:
    """Put runs side by side.

    The same model with other tasks in another run continues its column; with a task that is there
    already, or as another model under the same label, it gets a column of its own.

    Args:
        known: tasks by name, in place of the catalog's.

    Raises:
        AllMemError: if a folder is no run, is named twice, or nothing in them has rows.
    """
    paths = [Path(folder) for folder in folders]
    twice = [str(p) for p, times in Counter(p.resolve() for p in paths).items() if times > 1]
    if twice:
        raise AllMemError(f"the run {twice[0]} is named twice; name each once")
    runs = [run_scores(path, known) for path in paths]
    columns: list[Column] = []
    for scores in runs:
        for label in _ordered(scores):
            _add(columns, scores, label)
    columns = [column for column in columns if column.tasks]
    tasks = list(dict.fromkeys(task for scores in runs for task in scores.names))
    if not any(one.scored for column in columns for one in column.tasks.values()):
        asked = ", ".join(map(str, paths))
        raise AllMemError(
            f"there is no answer yet in {asked}; the same `allmem evaluate` command goes on"
        )
    groups = {name: tuple(of) for scores in runs for name, of in scores.run.groups.items()}
    results = Results(runs, columns, tasks, groups)
    warnings = [*_settings_apart(columns, tasks), *_incomplete(results)]
    return dataclasses.replace(results, warnings=warnings)


def _ordered(scores: RunScores) -> list[str]:
    return sorted(scores.labels, key=lambda label: label != scores.baseline)


def _add(columns: list[Column], scores: RunScores, label: str) -> None:
    identity = scores.run.identity(label)
    own = {name: one for (who, name), one in scores.tasks.items() if who == label}
    for column in columns:
        same = (column.name, column.identity) == (label, identity)
        if same and not own.keys() & column.tasks.keys():
            break
    else:
        column = Column(_unique(columns, scores, label), label, identity)
        columns.append(column)
    column.runs.append(scores)
    for name, one in own.items():
        column.tasks[name] = one
        column.rows[name] = scores.run.rows(label, name).rows()


def _unique(columns: Sequence[Column], scores: RunScores, label: str) -> str:
    taken = {column.label for column in columns}
    folder = scores.run.folder
    for name in (label, f"{label} [{folder.name}]", f"{label} [{folder}]"):
        if name not in taken:
            return name
    return f"{label} [{folder}, {len(columns) + 1}]"


def _settings_apart(columns: Sequence[Column], tasks: Sequence[str]) -> list[str]:
    """Where models answered a task under different settings: one sentence a key."""
    apart: dict[tuple[str, str], list[str]] = {}
    for task in tasks:
        settings = {c.label: _flat(c.tasks[task].header) for c in columns if task in c.tasks}
        for key in dict.fromkeys(key for setting in settings.values() for key in setting):
            values: dict[str, list[str]] = {}
            for label, setting in settings.items():
                values.setdefault(_shown(setting.get(key)), []).append(label)
            if len(values) > 1:
                told = "; ".join(f"{value} for {', '.join(who)}" for value, who in values.items())
                apart.setdefault((key, told), []).append(task)
    return [
        f"Not comparable: the columns differ in {key} ({told}) in {_listed(where)}."
        for (key, told), where in apart.items()
    ]


def _flat(header: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {"metric": header.get("metric")}
    for key, value in (header.get("setting") or {}).items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{inner}": below for inner, below in value.items()}
        else:
            flat[key] = value
    return flat


def _shown(value: Any) -> str:
    if value is None or value == []:
        return "not set"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _incomplete(results: Results) -> list[str]:
    found = []
    for column in results.columns:
        counts = {task: len(one.scored) for task, one in column.tasks.items()}
        short = [
            f"{task} ({number} of {results.expected(task, column.label)})"
            for task, number in counts.items()
            if number < results.expected(task, column.label)
        ]
        if short:
            found.append(f"Incomplete: {column.label} has rows of {_listed(short)}.")
    for scores in results.runs:
        missing = [
            f"{task} ({label})"
            for label in scores.labels
            for task in scores.run.tasks
            if (label, task) not in scores.tasks and task not in scores.run.left_out.get(label, ())
        ]
        if missing:
            found.append(
                f"Incomplete: the run {scores.run.folder.resolve().name} has no answers to "
                f"{_listed(missing)} yet; the same command goes on."
            )
    return found
