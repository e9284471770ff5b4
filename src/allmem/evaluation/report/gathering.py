"""Puts runs side by side: which column an answer belongs to."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from allmem.errors import AllMemError
from allmem.evaluation.catalog import groups_within
from allmem.evaluation.report.comparing import (
    examples_apart,
    incomplete,
    settings_apart,
    settings_mixed,
)
from allmem.evaluation.report.results import Column, Results
from allmem.evaluation.run_scores import RunScores, run_scores
from allmem.evaluation.scores import TaskScores
from allmem.evaluation.task import Task

__all__ = ["gather"]


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
    groups = dict(groups_within(tasks))
    groups |= {name: tuple(of) for scores in runs for name, of in scores.run.groups.items()}
    results = Results(runs, columns, tasks, groups)
    warnings = [
        *settings_apart(columns, tasks),
        *examples_apart(results),
        *settings_mixed(columns),
        *incomplete(results),
    ]
    return dataclasses.replace(results, warnings=warnings)


def _ordered(scores: RunScores) -> list[str]:
    return sorted(scores.labels, key=lambda label: label != scores.baseline)


def _add(columns: list[Column], scores: RunScores, label: str) -> None:
    """What a model is, its files say: if they do not agree, it is several."""
    own = {name: one for (who, name), one in scores.tasks.items() if who == label}
    while own:
        identity = next(iter(own.values())).header["model"]
        same = {name: one for name, one in own.items() if one.header["model"] == identity}
        _add_tasks(columns, scores, label, identity, same)
        own = {name: one for name, one in own.items() if name not in same}


def _add_tasks(
    columns: list[Column],
    scores: RunScores,
    label: str,
    identity: Mapping[str, Any],
    own: Mapping[str, TaskScores],
) -> None:
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
