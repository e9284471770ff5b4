"""Tables of whole tasks, laid out as the paper's: tasks down, models across, averages below, the
paper's own numbers at the right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from allmem.evaluation.report.blocks import Block, Heading, Table, Text, Value
from allmem.evaluation.report.paper import PaperRow, PaperTable, paper_tables
from allmem.evaluation.report.results import Results, scale_of, score_of
from allmem.evaluation.report.wording import NOTHING, difference, measured, number

__all__ = [
    "LONG",
    "Average",
    "averages_of",
    "blocks_of",
    "long_tasks",
    "other_tasks",
    "short_tasks",
    "suite_of",
]

LONG = {"longbench": "LongBench", "infinitebench": "InfiniteBench", "lveval": "LV-Eval"}
"""Suites of the paper's tables 2 and 3, as it calls them."""
AVERAGED = (*LONG, "ruler", "short")
"""Suites whose tasks' scores are alike enough for a mean."""
BY_BUCKET = "_e"
"""How names of LongBench-E's sets end."""
CHAT = "_chat"
"""How names of InfiniteBench's sets in the form for chat models end."""
DECIDING = "lveval/factrecall"
"""The two sets that decide the paper's win in LV-Eval: an average is shown without them too."""
NO_COMPARISON = (
    "The paper's numbers are for reference: other models (Qwen3-0.6B and 1.7B), the full data, "
    "Qwen3's recommended sampling, 32,768 new tokens, prompts cut to 128k. They enter no average "
    "and no difference."
)


@dataclass(frozen=True)
class Average:
    """Tasks whose mean is shown."""

    name: str
    block: str
    tasks: Sequence[str]


def suite_of(task: str) -> str:
    """``longbench`` of ``longbench/qasper``."""
    return task.partition("/")[0]


def blocks_of(results: Results) -> dict[str, list[str]]:
    """Tasks that may be averaged: those of a suite, at one length and in one form."""
    found: dict[str, list[str]] = {}
    for task in results.tasks:
        found.setdefault(_block(task), []).append(task)
    return found


def _block(task: str) -> str:
    suite = suite_of(task)
    if suite == "longbench" and task.endswith(BY_BUCKET):
        return "LongBench-E"
    if suite == "infinitebench" and task.endswith(CHAT):
        return "InfiniteBench, chat"
    if suite == "lveval":
        return f"LV-Eval {task.rpartition('_')[2]}"
    return LONG.get(suite, suite)


def averages_of(results: Results, block: str, own: Sequence[str]) -> list[Average]:
    """What is averaged in a block: all tasks that were run, the groups among them, and LV-Eval
    without the sets that decide it."""
    if any(one.lengths_apart for task in own for one in results.of(task).values()):
        return []
    named = {"Average": list(own)} if suite_of(own[0]) in AVERAGED else {}
    if any(task.startswith(DECIDING) for task in own):
        named["Average without factrecall"] = [t for t in own if not t.startswith(DECIDING)]
    for group, tasks in results.groups.items():
        if set(tasks) <= set(own):
            named[f"Average of {group}"] = list(tasks)
    found: list[Average] = []
    for name, tasks in named.items():
        if len(tasks) > 1 and set(tasks) not in [set(one.tasks) for one in found]:
            found.append(Average(name, block, tasks))
    return found


def short_tasks(results: Results) -> Iterator[Block]:
    """The paper's table 1."""
    tasks = [task for task in results.tasks if suite_of(task) == "short"]
    if not tasks:
        return
    papers = [part for table in paper_tables()[:1] for part in table.by_base()]
    known = papers[0].rows
    order = list(known)
    tasks.sort(key=lambda task: order.index(task) if task in known else len(order))
    names = {task: (known[task].group, known[task].name) for task in tasks if task in known}
    averages = averages_of(results, "short", tasks)
    yield Heading("Short tasks")
    board = _Board(results, papers, ("Category", "Task"))
    rows: list[Sequence[str | Value]] = [
        (*names.get(task, ("Other", task)), *board.row(task)) for task in tasks
    ]
    rows += board.averages(averages, lambda one: (one.name, ""))
    yield board.table(rows)
    if any(task in known for task in tasks):
        yield Text(NO_COMPARISON)
    yield from _differences(results, tasks, averages)


def long_tasks(results: Results) -> Iterator[Block]:
    """The paper's tables 2 and 3."""
    blocks = {
        block: tasks for block, tasks in blocks_of(results).items() if suite_of(tasks[0]) in LONG
    }
    if not blocks:
        return
    yield Heading("Long tasks")
    board = _Board(results, paper_tables()[1:], ("Suite", "Subset", "Avg. length"))
    rows: list[Sequence[str | Value]] = []
    shown: list[str] = []
    averages: list[Average] = []
    for block, tasks in blocks.items():
        for place, task in enumerate(tasks):
            first = block if place == 0 else ""
            rows.append((first, task.partition("/")[2], _length(results, task), *board.row(task)))
        own = averages_of(results, block, tasks)
        rows += board.averages(own, lambda one: ("", one.name, ""))
        averages += own
        shown += tasks
    yield board.table(rows)
    yield Text(
        "Average lengths are tokens of the prompts as they were read, after truncation, by "
        f"{results.baseline.label} where it was run. Averages are made anew from the rows: the "
        "mean of the tasks' means."
    )
    if any(task in table.rows for table in paper_tables()[1:] for task in shown):
        yield Text(NO_COMPARISON)
    yield from _differences(results, shown, averages)


def other_tasks(results: Results, tasks: Sequence[str], heading: str) -> Iterator[Block]:
    """A plain table of tasks that the paper does not have, with all that was measured of them."""
    yield Heading(heading)
    averages = averages_of(results, heading, tasks)
    board = _Board(results, (), ("Task", "Measure"))
    rows: list[Sequence[str | Value]] = []
    for task in tasks:
        measures = list(dict.fromkeys(m for one in results.of(task).values() for m in one.metrics))
        for place, name in enumerate(measures):
            rows.append(("" if place else task, name, *board.row(task, name)))
    rows += board.averages(averages, lambda one: (one.name, ""))
    yield board.table(rows)
    scores = [one for task in tasks for one in results.of(task).values()]
    if any(one.counted != one.scored for one in scores):
        yield Text(
            "Answers that the attention saw itself do not count here; the cells below show them, "
            "marked †."
        )
    yield from _differences(results, tasks, averages)


class _Board:
    """A table in the making."""

    def __init__(
        self, results: Results, papers: Sequence[PaperTable], names: Sequence[str]
    ) -> None:
        shown = set(results.tasks)
        self.results = results
        self.papers = [paper for paper in papers if shown & paper.rows.keys()]
        self.names = names

    def row(self, task: str, metric: str | None = None) -> list[Value]:
        """A task's scores by its first measure or another one, and the paper's."""
        values = []
        for column in self.results.columns:
            one = column.tasks.get(task)
            if one is None:
                values.append(NOTHING)
                continue
            name = metric or one.metric
            missing = self.results.missing(column, [task])
            values.append(measured(score_of(one, name), scale_of(one, name), missing))
        headers = [one.header for one in self.results.of(task).values()]
        rows = [(paper, paper.row_for(task, headers)) for paper in self.papers]
        return [*values, *(_printed(paper, row) for paper, row in rows)]

    def averages(self, averages: Sequence[Average], names: Any) -> list[Sequence[str | Value]]:
        """A row for each average."""
        rows: list[Sequence[str | Value]] = []
        for one in averages:
            values = [
                measured(
                    self.results.average(column, one.tasks),
                    self.results.any_of(one.tasks[0]).scale,
                    self.results.missing(column, one.tasks),
                )
                for column in self.results.columns
            ]
            printed = [_printed_average(paper, one) for paper in self.papers]
            rows.append((*names(one), *values, *printed))
        return rows

    def table(self, rows: Sequence[Sequence[str | Value]]) -> Table:
        """The finished table."""
        headings = [paper.heading for paper in self.papers]
        columns = [*self.names, *self.results.labels, *headings]
        return Table(columns, rows, len(self.names))


def _printed(paper: PaperTable, row: PaperRow | None) -> Value:
    if row is None:
        return Value("")
    told = " / ".join(f"{score}" for score in row.scores)
    named = zip(paper.models, row.scores, strict=True)
    title = "; ".join(f"{model} {score}" for model, score in named)
    return Value(told, title=f"table {paper.number}: {title}", mark="aside")


def _printed_average(paper: PaperTable, average: Average) -> Value:
    """Only where it is the average of the same tasks."""
    for group, scores in paper.averages.items():
        own = {row.task for row in paper.rows.values() if row.group == group}
        if own == set(average.tasks):
            return Value(" / ".join(f"{score}" for score in scores), mark="aside")
    return Value("")


def _length(results: Results, task: str) -> str:
    found = [one.lengths.prompt_mean for one in results.of(task).values()]
    known = [mean for mean in found if mean is not None]
    return number(known[0]) if known else "–"


def _differences(
    results: Results, tasks: Sequence[str], averages: Sequence[Average]
) -> Iterator[Block]:
    others = results.columns[1:]
    rows: list[Sequence[str | Value]] = []
    for task in tasks:
        one = results.any_of(task)
        found = [results.difference(column, task) for column in others]
        if any(score is not None for score in found):
            told = [difference(score, one.scale, one.higher_is_better) for score in found]
            rows.append((task, *told))
    for average in averages:
        gaps = [results.average_difference(column, average.tasks) for column in others]
        if any(score is not None for score in gaps):
            rows.append(
                (
                    f"{average.name} ({average.block})",
                    *(difference(score, 100.0, True) for score in gaps),
                )
            )
    if not rows:
        return
    yield Heading(f"Differences to {results.baseline.label}", 3)
    yield Table(["Task", *(column.label for column in others)], rows)
    yield Text(
        "On the rows that both answered, with the 95 % interval of the paired difference. Better "
        "or worse is said where that interval leaves out zero, and of no fewer than five rows."
    )
