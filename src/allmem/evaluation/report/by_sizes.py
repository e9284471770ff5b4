"""One checkpoint read with several windows and chunks: a grid of them for every task."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from allmem.cost.lengths import length_name
from allmem.evaluation.report.blocks import Block, Figure, Heading, Table, Value
from allmem.evaluation.report.heat import Panel, heat_maps
from allmem.evaluation.report.results import Column, Results
from allmem.evaluation.report.wording import NOTHING, measured

__all__ = ["by_sizes"]

SIZES = ("window", "sinks", "chunk")
SHARE = 100.0
"""Scale of the tasks that share one colour bar."""


def by_sizes(results: Results) -> Iterator[Block]:
    """A section for each checkpoint that was read with more than one window or chunk."""
    for number, columns in enumerate(_families(results)):
        windows, chunks = (
            sorted({_size(c, name) for c in columns}) for name in ("window", "chunk")
        )
        if number == 0:
            yield Heading("By window and chunk")
        names = ", ".join(column.label for column in columns)
        tasks = [task for task in results.tasks if all(task in c.tasks for c in columns)]
        shares = [task for task in tasks if results.any_of(task).scale == SHARE]
        if len(windows) > 1 and len(chunks) > 1 and shares:
            panels = [_panel(task, columns, windows, chunks) for task in shares]
            png = heat_maps(
                panels,
                [length_name(chunk) for chunk in chunks],
                [length_name(window) for window in windows],
                "chunk (tokens)",
                "window (tokens)",
                "score (%)",
                low=0.0,
                high=SHARE,
            )
            yield Figure(f"by-window-and-chunk-{number + 1}.png", f"scores of {names}", png)
        rows: list[list[str | Value]] = []
        for task in tasks:
            for place, window in enumerate(windows):
                values = [_value(task, _find(columns, window, chunk)) for chunk in chunks]
                rows.append(["" if place else task, f"{window:,}", *values])
        yield Table(["Task", "Window", *(f"chunk {chunk:,}" for chunk in chunks)], rows, 2)


def _families(results: Results) -> list[list[Column]]:
    """Columns that differ in nothing but their sizes."""
    found: dict[str, list[Column]] = {}
    for column in results.columns:
        if column.identity.get("window"):
            rest = {key: value for key, value in column.identity.items() if key not in SIZES}
            found.setdefault(json.dumps(rest, sort_keys=True, default=str), []).append(column)
    several = [family for family in found.values() if len({_both(c) for c in family}) > 1]
    # Two columns of the same sizes, of two runs say, are no grid.
    return [family for family in several if len({_both(c) for c in family}) == len(family)]


def _size(column: Column, name: str) -> int:
    return int(column.identity.get(name) or 0)


def _both(column: Column) -> tuple[int, int]:
    return _size(column, "window"), _size(column, "chunk")


def _find(columns: Sequence[Column], window: int, chunk: int) -> Column | None:
    return next((column for column in columns if _both(column) == (window, chunk)), None)


def _value(task: str, column: Column | None) -> Value:
    if column is None:
        return NOTHING
    return measured(column.tasks[task].overall, column.tasks[task].scale)


def _panel(
    task: str, columns: Sequence[Column], windows: Sequence[int], chunks: Sequence[int]
) -> Panel:
    found = [[_find(columns, window, chunk) for chunk in chunks] for window in windows]
    values = [[None if c is None else c.tasks[task].overall.mean for c in row] for row in found]
    return Panel(task, values, [[False] * len(chunks) for _ in windows])
