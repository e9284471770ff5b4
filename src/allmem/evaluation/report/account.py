"""The account of a run: what was read and cut, what is missing, and how it was made."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from allmem.evaluation.report.blocks import Block, Heading, Table, Text, Value
from allmem.evaluation.report.comparing import settings_of
from allmem.evaluation.report.results import Column, Results
from allmem.evaluation.report.wording import number, share
from allmem.evaluation.versions import deciding_versions

__all__ = ["how_it_was_run", "what_was_read"]

MOST_BAD_ROWS = 5
"""That are named; the rest is counted."""
NOT_SETTING = ("kind", "format", "models", "tasks", "asked", "groups", "baseline", "setting")
"""Of ``run.json``: what the report shows elsewhere. Its setting is that of the last command only;
those of the answers are in their files."""


def what_was_read(results: Results) -> Iterator[Block]:
    """Rows, lengths, truncation and answers that met the limit, of every model and task."""
    yield Heading("What was read and answered")
    rows: list[tuple[str | Value, ...]] = []
    left_out: list[str] = []
    for task in results.tasks:
        for label, one in results.of(task).items():
            column = results.column(label)
            total, lengths, cuts = len(one.scored), one.lengths, column.cuts(task)
            expected, bad = results.expected(task, label), len(one.bad_rows)
            rows.append(
                (
                    task,
                    label,
                    Value(f"{total} of {expected}" if total < expected else str(total)),
                    Value(str(bad) if bad else ""),
                    Value(_optional(lengths.prompt_mean)),
                    Value(_optional(lengths.prompt_longest)),
                    Value(share(cuts.rows, total) if cuts.rows else ""),
                    Value(number(cuts.tokens) if cuts.rows else ""),
                    Value(_optional(lengths.new_mean)),
                    Value(share(lengths.unfinished, total) if lengths.unfinished else ""),
                    Value(share(column.beyond(task), total) if column.beyond(task) else ""),
                )
            )
            left_out += [f"{label}, {task}: {why}" for why in one.bad_rows[:MOST_BAD_ROWS]]
            if bad > MOST_BAD_ROWS:
                left_out.append(f"{label}, {task}: {bad - MOST_BAD_ROWS} more")
    columns = [
        "Task",
        "Model",
        "Rows",
        "Left out",
        "Prompt, mean",
        "longest",
        "Cut",
        "by, mean",
        "Answer, mean",
        "At the limit",
        "Beyond reach",
    ]
    yield Table(columns, rows, 2)
    yield Text(
        "In tokens as each model's tokenizer counts them. Cut: share of the prompts that were too "
        "long and lost their middle, and how many tokens each lost. At the limit: answers that "
        "were ended by the most tokens allowed. Beyond reach: prompts that are longer than what "
        "the model was made for. Left out: rows of the data that could not be read."
    )
    for line in left_out:
        yield Text(f"Left out: {line}")


def how_it_was_run(results: Results) -> Iterator[Block]:
    """Models, setting, versions, date and command."""
    yield Heading("How it was run")
    for column in results.columns:
        yield Heading(column.label, 3)
        facts = {"sees": column.sees, **column.identity} if column.sees else column.identity
        yield _facts("Model", facts)
        yield Table(["Setting", "is"], _settings(column), 1, texts=True)
    yield _facts("Scored with", deciding_versions())
    for scores in results.runs:
        yield Heading(f"Run {scores.run.folder.resolve().name}", 3)
        about = {k: v for k, v in scores.run.about.items() if k not in NOT_SETTING}
        yield _facts("Run", about)


def _settings(column: Column) -> list[tuple[str, str]]:
    """Of a model's tasks; where they differ, of which."""
    return [
        (
            key,
            "; ".join(f"{value} in {', '.join(tasks)}" for value, tasks in values.items())
            if len(values) > 1
            else next(iter(values)),
        )
        for key, values in settings_of(column).items()
    ]


def _facts(name: str, facts: Mapping[str, Any]) -> Table:
    rows = [(key, _shown(value)) for key, value in _flat(facts).items()]
    return Table([name, "is"], rows, 1, texts=True)


def _flat(facts: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in facts.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{before}{key}.")
        else:
            flat[f"{before}{key}"] = value
    return flat


def _shown(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return "; ".join(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _optional(value: float | None) -> str:
    return "" if value is None else number(value)
