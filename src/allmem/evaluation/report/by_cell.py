"""Tasks whose answers lie in cells: a heat map over length and depth, a line over anything else
that is counted, bars over what is named; below it always a table.

What is drawn follows from the cells alone, so that a task that is new here is shown as well.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from allmem.cost.lengths import length_name
from allmem.evaluation.report import plots
from allmem.evaluation.report.blocks import Block, Figure, Heading, Table, Text, Value
from allmem.evaluation.report.heat import Panel, heat_maps
from allmem.evaluation.report.naming import AXES, FLAGS, CellValue, meaning, measure, title_of, told
from allmem.evaluation.report.plots import Series
from allmem.evaluation.report.results import Results, scale_of, score_of
from allmem.evaluation.report.wording import NOTHING, measured
from allmem.evaluation.scores import Cell, Score, TaskScores, cells_of

__all__ = ["Grid", "by_cell", "grid_of"]

IN_TOKENS = ("length", "position")
ALSO_DRAWN = ("answer_accuracy", "stale", "copy_exact", "reset", "shuffled")
"""Measures beside a task's first one; report.json has all."""
MOST_FIGURES = 8
"""Of one task and measure: beyond that only tables are made."""
MOST_ROWS = 48
"""Of a table; a task with more cells shows some of them, evenly."""


@dataclass(frozen=True)
class Grid:
    """How a task's cells lie."""

    names: Mapping[str, Sequence[CellValue | None]]
    """What varies, and its values in order; ``None`` for cells that lack it."""
    flags: Sequence[str]
    """What is true of some cells only, such as being beyond a model's reach: a mark on them."""

    def key(self, where: Mapping[str, Any]) -> Cell:
        """A place as scores know it."""
        known = ((name, where.get(name)) for name in self.names)
        return tuple((name, value) for name, value in known if value is not None)


def grid_of(results: Results, task: str) -> Grid:
    """The cells of a task, over all models."""
    cells = [
        part.cell
        for one in results.of(task).values()
        for scored in one.scored
        for part in scored.parts
        if part.cell
    ]
    found: dict[str, list[CellValue | None]] = {}
    for name in dict.fromkeys(name for cell in cells for name in cell):
        found[name] = sorted({cell.get(name) for cell in cells}, key=_rank)
    flags = [name for name, values in found.items() if name in FLAGS or set(values) == {1, None}]
    names = {n: values for n, values in found.items() if n not in flags and len(values) > 1}
    return Grid(names, flags)


def by_cell(results: Results, task: str, heading: str) -> Iterator[Block]:
    """A section about one task, or nothing if its cells are all alike."""
    grid = grid_of(results, task)
    if not grid.names:
        return
    yield Heading(heading, 3)
    one = results.any_of(task)
    more = [
        name for name in ALSO_DRAWN if any(name in o.metrics for o in results.of(task).values())
    ]
    for metric in [one.metric, *more]:
        view = _View(results, task, metric, grid)
        if metric != one.metric:
            yield Text(f"The same for {view.measure}:")
        yield from view.blocks()


class _View:
    """One measure of a task."""

    def __init__(self, results: Results, task: str, metric: str, grid: Grid) -> None:
        self.results = results
        self.task = task
        self.metric = metric
        self.grid = grid
        self.scale = scale_of(results.any_of(task), metric)
        self.measure = measure(metric, self.scale)
        names = tuple(grid.names)
        self.scores = {
            label: {cell: score_of(one, metric, dict(cell)) for cell in cells_of(one.scored, names)}
            for label, one in results.of(task).items()
        }
        self.marked = {label: _marked(one, grid) for label, one in results.of(task).items()}

    def blocks(self) -> Iterator[Block]:
        names = list(self.grid.names)
        if {"length", "depth"} <= set(names):
            yield from self._maps([name for name in names if name not in ("length", "depth")])
            return
        counted = [name for name in names if _counted(self.grid.names[name])]
        known = [name for name in AXES if name in counted]
        if counted:
            x = known[0] if known else max(counted, key=lambda name: len(self.grid.names[name]))
        else:
            x = max(names, key=lambda name: len(self.grid.names[name]))
        rest = [name for name in names if name != x]
        draw = self._lines if counted else self._bars
        yield from self._figures(rest, lambda where: draw(x, where))
        yield from self._table(names)

    def score(self, label: str, where: Mapping[str, Any]) -> Score | None:
        """Of one cell."""
        found = self.scores[label].get(self.grid.key(where))
        return found if found is not None and found.n else None

    def _combinations(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """The values of some names that occur together, in order."""
        wanted = [
            dict(zip(names, values, strict=True))
            for values in itertools.product(*(self.grid.names[name] for name in names))
        ]
        there = [
            dict(cell) for found in self.scores.values() for cell, score in found.items() if score.n
        ]
        return [
            one for one in wanted if any(all(c.get(n) == v for n, v in one.items()) for c in there)
        ]

    def _figures(self, names: Sequence[str], draw: Any) -> Iterator[Block]:
        places = self._combinations(names)
        if len(places) > MOST_FIGURES:
            yield Text(f"{len(places)} plots would be needed; the table has the numbers.")
            return
        for where in places:
            alt = f"{self.task}: {self.measure}"
            if where:
                alt += f", {title_of(where)}"
            yield Figure(_file_name(self.task, self.metric, *where.values()), alt, draw(where))

    def _series(self, x: str, where: Mapping[str, Any], places: Sequence[float]) -> list[Series]:
        drawn = []
        for column in self.results.columns:
            if column.label in self.scores:
                cells = zip(places, self.grid.names[x], strict=False)
                scores = [
                    (place, self.score(column.label, {**where, x: value})) for place, value in cells
                ]
                mark = column.sees if x in IN_TOKENS else None
                drawn.append(plots.series(column.label, scores, mark))
        return drawn

    def _lines(self, x: str, where: Mapping[str, Any]) -> bytes:
        values = [float(value) for value in self.grid.names[x] if value is not None]
        if x == "depth" and isinstance(self.grid.names[x][0], float):
            values = [100 * value for value in values]
        # From 0 on, the second one begins to double.
        positive = [value for value in values if value > 0]
        spread = values[0] >= 0 and len(positive) > 2 and positive[-1] / positive[0] >= 8
        full = self.scale == 100
        return plots.lines(
            self._series(x, where, values),
            AXES.get(x, x),
            self.measure,
            title=title_of(where),
            doubling=spread,
            mark="end of the window",
            bottom=0.0 if full else None,
            top=100.0 if full else None,
        )

    def _bars(self, x: str, where: Mapping[str, Any]) -> bytes:
        categories = [told(value) for value in self.grid.names[x]]
        series = self._series(x, where, range(len(categories)))
        return plots.bars(categories, series, AXES.get(x, x), self.measure, title=title_of(where))

    def _maps(self, rest: Sequence[str]) -> Iterator[Block]:
        lengths, depths = self.grid.names["length"], self.grid.names["depth"]

        def draw(where: Mapping[str, Any]) -> bytes:
            panels: list[Panel] = []
            for label in self.scores:
                cells = [
                    [{**where, "length": length, "depth": depth} for length in lengths]
                    for depth in depths
                ]
                found = [[self.score(label, cell) for cell in row] for row in cells]
                means = [[None if s is None else s.mean for s in row] for row in found]
                marked = [[self._is_marked(label, cell) for cell in row] for row in cells]
                panels.append(Panel(label, means, marked))
            return heat_maps(
                panels,
                [length_name(int(length or 0)) for length in lengths],
                [told(depth, "depth") for depth in depths],
                AXES["length"],
                AXES["depth"],
                self.measure,
                low=0.0,
                high=self.scale,
                hatched=self._meaning(),
            )

        yield from self._figures(rest, draw)
        columns = ["Model", *rest, "Depth (%)", *(f"{told(length)} tokens" for length in lengths)]
        rows: list[list[str | Value]] = []
        for label in self.scores:
            for where in self._combinations(rest):
                for depth in depths:
                    places = [{**where, "length": n, "depth": depth} for n in lengths]
                    values = [self._value(label, place) for place in places]
                    names = [label, *map(told, where.values()), told(depth, "depth")]
                    rows.append([*names, *values])
        yield Table(columns, rows, 2 + len(rest))
        yield from self._flagged()

    def _table(self, names: Sequence[str]) -> Iterator[Block]:
        cells = self._combinations(names)
        shown = cells
        if len(cells) > MOST_ROWS:
            step = -(-len(cells) // MOST_ROWS)
            shown = cells[::step]
        labels = list(self.scores)
        rows: list[list[str | Value]] = [
            [*(told(where[n], n) for n in names), *(self._value(label, where) for label in labels)]
            for where in shown
        ]
        yield Table([*names, *labels], rows, len(names))
        if len(shown) < len(cells):
            yield Text(f"{len(shown)} of {len(cells)} cells; report.json has all.")
        yield from self._flagged()

    def _value(self, label: str, where: Mapping[str, Any]) -> Value:
        value = measured(self.score(label, where), self.scale)
        if value is not NOTHING and self._is_marked(label, where):
            value = Value(value.text + " †", value.count, value.title, value.mark)
        return value

    def _is_marked(self, label: str, where: Mapping[str, Any]) -> bool:
        return self.grid.key(where) in self.marked[label]

    def _flagged(self) -> Iterator[Block]:
        if any(self.marked.values()):
            yield Text(f"† {self._meaning()}")

    def _meaning(self) -> str:
        """Of a mark."""
        return "; ".join(meaning(flag) for flag in self.grid.flags)


def _marked(one: TaskScores, grid: Grid) -> set[Cell]:
    """Cells in which a part has a flag."""
    return {
        grid.key(part.cell)
        for scored in one.scored
        for part in scored.parts
        if any(part.cell.get(flag) for flag in grid.flags)
    }


def _file_name(*parts: Any) -> str:
    told = "-".join(str(part) for part in parts if part is not None).lower()
    return re.sub(r"[^a-z0-9]+", "-", told).strip("-") + ".png"


def _counted(values: Sequence[CellValue | None]) -> bool:
    return not any(isinstance(value, str) for value in values)


def _rank(value: CellValue | None) -> tuple[int, float, str]:
    """Numbers in their order, then texts, then nothing."""
    if value is None:
        return 2, 0.0, ""
    return (1, 0.0, value) if isinstance(value, str) else (0, value, "")
