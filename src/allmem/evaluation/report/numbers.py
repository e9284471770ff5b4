"""Every number of a report, as ``report.json`` holds it."""

from __future__ import annotations

import dataclasses
from typing import Any

from allmem.evaluation.report.paper import paper_tables
from allmem.evaluation.report.results import Results, score_of
from allmem.evaluation.report.scoreboards import averages_of, blocks_of
from allmem.evaluation.scores import Score, TaskScores, cells_of
from allmem.evaluation.versions import deciding_versions

__all__ = ["FORMAT", "all_numbers"]

FORMAT = 1


def all_numbers(results: Results, costs: dict[str, Any]) -> dict[str, Any]:
    """JSON-able, in an order that is always the same."""
    averages = [
        average
        for block, tasks in blocks_of(results).items()
        for average in averages_of(results, block, tasks)
    ]
    return {
        "kind": "report",
        "format": FORMAT,
        "baseline": results.baseline.label,
        "models": [
            {
                "label": column.label,
                "identity": dict(column.identity),
                "runs": [scores.run.folder.resolve().name for scores in column.runs],
            }
            for column in results.columns
        ],
        "warnings": list(results.warnings),
        "tasks": {task: _task(results, task) for task in results.tasks},
        "averages": [
            {
                "name": average.name,
                "block": average.block,
                "tasks": list(average.tasks),
                "models": {
                    column.label: {
                        "score": _score(results.average(column, average.tasks)),
                        "difference": _score(results.average_difference(column, average.tasks)),
                    }
                    for column in results.columns
                },
            }
            for average in averages
        ],
        "paper": [
            {
                "table": table.number,
                "models": list(table.models),
                "scores": {
                    task: list(row.scores)
                    for task in table.rows
                    if (row := table.row_for(task, [o.header for o in results.of(task).values()]))
                    and task in results.tasks
                },
            }
            for table in paper_tables()
        ],
        "cost": costs,
        "scored_with": deciding_versions(),
        "runs": [
            {"folder": scores.run.folder.resolve().name, **scores.run.about}
            for scores in results.runs
        ],
    }


def _task(results: Results, task: str) -> dict[str, Any]:
    one = results.any_of(task)
    return {
        "metric": one.metric,
        "scale": one.scale,
        "higher_is_better": one.higher_is_better,
        "models": {label: _model(results, label, own) for label, own in results.of(task).items()},
    }


def _model(results: Results, label: str, own: TaskScores) -> dict[str, Any]:
    column = results.column(label)
    return {
        "rows": len(own.scored),
        "expected_rows": results.expected(own.task, label),
        "left_out": list(own.bad_rows),
        "lengths": dataclasses.asdict(own.lengths),
        "cut": dataclasses.asdict(column.cuts(own.task)),
        "beyond_reach": column.beyond(own.task),
        # Where lengths are tests of their own, only their cells have a mean.
        "scores": {}
        if own.lengths_apart
        else {metric: _score(score_of(own, metric)) for metric in own.metrics},
        "difference": None if own.lengths_apart else _score(results.difference(column, own.task)),
        "cells": [
            {
                "cell": dict(cell),
                "scores": {m: _score(score_of(own, m, dict(cell))) for m in own.metrics},
            }
            for cell in cells_of(own.scored)
        ],
    }


def _score(score: Score | None) -> dict[str, Any] | None:
    """Without what JSON cannot say: nothing was measured, nothing is told."""
    return None if score is None or score.n == 0 else dataclasses.asdict(score)
