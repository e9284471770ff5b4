"""Suites whose tasks are asked at several lengths: tasks down, lengths across, the average of all
tasks at each length, and that average as a line for every model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from allmem.cost.lengths import length_name
from allmem.evaluation.report import plots
from allmem.evaluation.report.blocks import Block, Figure, Heading, Table, Text, Value
from allmem.evaluation.report.results import Column, Results
from allmem.evaluation.report.wording import NOTHING, difference, measured
from allmem.evaluation.scores import (
    Score,
    Scored,
    group_average,
    paired_difference,
    why_apart,
)

__all__ = ["by_length", "several_lengths"]


def several_lengths(results: Results, tasks: Sequence[str]) -> bool:
    """Whether tasks were asked at more than one length."""
    return len(_lengths(results, tasks)) > 1


def by_length(
    results: Results, tasks: Sequence[str], heading: str, level: int = 3
) -> Iterator[Block]:
    """A section about tasks of one suite, or nothing if they have no lengths."""
    asked = [task for task in tasks if _lengths(results, [task])]
    lengths = _lengths(results, asked)
    if len(lengths) < 2:
        return
    yield Heading(heading, level)
    averages = {
        column.label: [_average(column, asked, {"length": at}) for at in lengths]
        for column in results.columns
    }
    if len(asked) > 1:
        yield _figure(results, heading, lengths, averages)
    for column in results.columns:
        if any(task in column.tasks for task in asked):
            yield _table(column, asked, lengths, averages[column.label])
    for column in results.columns[1:]:
        gaps = {task: _differences(results, column, task, lengths) for task in asked}
        if any(value is not NOTHING for values in gaps.values() for value in values):
            yield Text(f"Differences of {column.label} to {results.baseline.label}:")
            yield Table([column.label, *_names(lengths)], [(t, *gaps[t]) for t in asked])
    if len(asked) > 1:
        yield Text(
            "The average at a length is the mean of the tasks' means there, where every task "
            "has rows."
        )


def _average(column: Column, tasks: Sequence[str], where: Mapping[str, Any]) -> Score | None:
    """The mean of tasks' means over the parts in some cells; ``None`` unless all have any, or if
    something keeps them apart."""
    own = [column.tasks[task] for task in tasks if task in column.tasks]
    kept = [(_within(one.scored, where), one.metric, one.scale) for one in own]
    if len(kept) < len(tasks) or not all(scored for scored, _, _ in kept) or why_apart(own):
        return None
    return group_average(kept)


def _differences(
    results: Results, column: Column, task: str, lengths: Sequence[Any]
) -> list[Value]:
    """How much more a column has at each length than the first one."""
    if results.difference(column, task) is None:
        return [NOTHING] * len(lengths)
    ours, base = column.tasks[task], results.baseline.tasks[task]
    found = []
    for at in lengths:
        theirs, first = (_within(one.scored, {"length": at}) for one in (ours, base))
        score = paired_difference(theirs, first, ours.metric, ours.scale)
        found.append(difference(score, ours.scale, ours.higher_is_better))
    return found


def _within(scored: Sequence[Scored], where: Mapping[str, Any]) -> list[Scored]:
    found = []
    for one in scored:
        parts = [part for part in one.parts if where.items() <= part.cell.items()]
        if parts:
            found.append(dataclasses.replace(one, parts=parts))
    return found


def _lengths(results: Results, tasks: Sequence[str]) -> list[Any]:
    """Numbers of tokens, or names of buckets."""
    found = {
        part.cell["length"]
        for task in tasks
        for one in results.of(task).values()
        for scored in one.scored
        for part in scored.parts
        if "length" in part.cell
    }
    return sorted(found, key=lambda value: (isinstance(value, str), value))


def _figure(
    results: Results,
    heading: str,
    lengths: Sequence[Any],
    averages: Mapping[str, Sequence[Score | None]],
) -> Figure:
    """A line over numbers, bars over buckets."""
    counted = all(isinstance(at, int) for at in lengths)
    series = []
    for column in results.columns:
        places = lengths if counted else range(len(lengths))
        pairs = zip(places, averages[column.label], strict=True)
        series.append(plots.series(column.label, pairs, column.sees))
    measure = "average of the tasks (%)"
    if counted:
        png = plots.lines(
            series,
            "length (tokens)",
            measure,
            doubling=True,
            bottom=0.0,
            top=100.0,
            mark="end of the window",
        )
    else:
        png = plots.bars([str(at) for at in lengths], series, "length", measure)
    name = heading.lower().replace(" ", "-")
    return Figure(f"{name}.png", f"{heading}: average of the tasks", png)


def _table(
    column: Column,
    tasks: Sequence[str],
    lengths: Sequence[Any],
    averages: Sequence[Score | None],
) -> Table:
    rows: list[Sequence[str | Value]] = []
    for task in tasks:
        one = column.tasks.get(task)
        if one is None:
            rows.append((task, *(NOTHING for _ in lengths)))
            continue
        scores = [one.score(where={"length": at}) for at in lengths]
        rows.append((task, *(measured(score, one.scale) for score in scores)))
    if len(tasks) > 1:
        rows.append(("Average", *(measured(score, 100.0) for score in averages)))
    return Table([column.label, *_names(lengths)], rows)


def _names(lengths: Sequence[Any]) -> list[str]:
    return [length_name(at) if isinstance(at, int) else str(at) for at in lengths]
