"""Where results cannot be compared or are not complete, in sentences for the reader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from allmem.evaluation.report.results import Column, Results
from allmem.evaluation.scores import ONE_SETTING, same_examples

__all__ = ["examples_apart", "incomplete", "settings_apart", "settings_mixed", "settings_of"]


def settings_apart(columns: Sequence[Column], tasks: Sequence[str]) -> list[str]:
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


def examples_apart(results: Results) -> list[str]:
    """Where a model was asked other examples than the first one."""
    base = results.baseline
    found = []
    for column in results.columns[1:]:
        apart = [
            task
            for task, one in column.tasks.items()
            if task in base.tasks and not same_examples(one, base.tasks[task])
        ]
        if apart:
            found.append(
                f"Not comparable: {column.label} and {base.label} were asked different examples "
                f"of {_listed(apart)}; no difference is taken."
            )
    return found


def settings_mixed(columns: Sequence[Column]) -> list[str]:
    """Where tasks of one column were run under different settings."""
    found = []
    for column in columns:
        for key, values in settings_of(column).items():
            if len(values) > 1:
                told = "; ".join(f"{value} in {_listed(tasks)}" for value, tasks in values.items())
                end = "; they are not averaged" if key.partition(".")[0] in ONE_SETTING else ""
                found.append(f"Mixed: tasks of {column.label} differ in {key} ({told}){end}.")
    return found


def settings_of(column: Column) -> dict[str, dict[str, list[str]]]:
    """Under which settings the tasks of a column were run: by key and value, the tasks."""
    found: dict[str, dict[str, list[str]]] = {}
    flat = {task: _flat(one.header) for task, one in column.tasks.items()}
    for key in dict.fromkeys(key for setting in flat.values() for key in setting):
        if key != "metric":
            for task, setting in flat.items():
                found.setdefault(key, {}).setdefault(_shown(setting.get(key)), []).append(task)
    return found


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


def incomplete(results: Results) -> list[str]:
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
            if (label, task) not in scores.tasks and task in scores.run.asked.get(label, ())
        ]
        if missing:
            found.append(
                f"Incomplete: the run {scores.run.folder.resolve().name} has no answers to "
                f"{_listed(missing)} yet; the same command goes on."
            )
    return found
