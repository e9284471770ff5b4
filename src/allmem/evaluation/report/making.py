"""From runs to the files of a report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from allmem.errors import AllMemError
from allmem.evaluation.report.account import how_it_was_run, what_was_read
from allmem.evaluation.report.answers import first_answers
from allmem.evaluation.report.audit import audit
from allmem.evaluation.report.blocks import Block, Figure, Heading, Text
from allmem.evaluation.report.by_cell import by_cell
from allmem.evaluation.report.by_length import by_length, several_lengths
from allmem.evaluation.report.by_sizes import by_sizes
from allmem.evaluation.report.cost_curves import cost_curves, read_costs
from allmem.evaluation.report.gathering import gather
from allmem.evaluation.report.html import to_html
from allmem.evaluation.report.markdown import to_markdown
from allmem.evaluation.report.numbers import all_numbers
from allmem.evaluation.report.results import Results
from allmem.evaluation.report.scoreboards import (
    LONG,
    blocks_of,
    long_tasks,
    other_tasks,
    short_tasks,
    suite_of,
)
from allmem.evaluation.task import Task
from allmem.files import atomic_path

__all__ = ["Written", "make_report"]

TITLE = "Evaluation report"
BUCKETS = "LongBench-E"
VIEWS = {"probes/audit": audit}
"""Tasks that are not drawn by their cells alone."""
HEADINGS = {"ruler": "RULER", "probes": "Probes"}


@dataclass(frozen=True)
class Written:
    """What was made."""

    folder: Path
    files: Sequence[Path]
    models: Sequence[str]
    tasks: int
    warnings: Sequence[str]
    """What a reader must know before comparing columns."""


def make_report(
    runs: Sequence[str | Path],
    output: str | Path | None = None,
    known: Mapping[str, Task] | None = None,
) -> Written:
    """Write ``report.md``, ``report.html``, ``report.json`` and the plots.

    Args:
        runs: folders of runs, side by side; differences are taken from the first one's baseline.
        output: the folder to write; ``report`` in the first run if not given.
        known: tasks by name, in place of the catalog's.

    Raises:
        AllMemError: if a folder is no run, nothing was answered yet, matplotlib is missing or
            the files cannot be written.
    """
    if not runs:
        raise AllMemError("name a run's folder, as `allmem evaluate --output` made it")
    results = gather(runs, known)
    costs = read_costs(results)
    blocks = _distinct(list(_blocks(results, costs)))
    numbers = json.dumps(
        all_numbers(results, costs), ensure_ascii=False, indent=1, allow_nan=False, default=str
    )
    folder = Path(output) if output is not None else Path(runs[0]) / "report"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AllMemError(
            f"cannot make the folder {folder}: {error.strerror}; name another one: --output DIR"
        ) from error
    texts = {
        "report.md": to_markdown(blocks),
        "report.html": to_html(TITLE, blocks),
        "report.json": numbers + "\n",
    }
    contents = {name: text.encode("utf-8", "backslashreplace") for name, text in texts.items()}
    contents |= {block.name: block.png for block in blocks if isinstance(block, Figure)}
    for name, content in contents.items():
        with atomic_path(folder / name) as part:
            part.write_bytes(content)
    return Written(
        folder,
        [folder / name for name in contents],
        results.labels,
        len(results.tasks),
        results.warnings,
    )


def _blocks(results: Results, costs: Mapping[str, dict[str, Any]]) -> Iterator[Block]:
    yield Heading(TITLE, 1)
    number = len(results.tasks)
    yield Text(
        f"{'; '.join(results.labels)}: {number} {'task' if number == 1 else 'tasks'}. Scores are "
        "means with a 95 % bootstrap interval and the count of rows; without an interval where "
        "all rows scored alike, which says nothing about rows that were not asked."
    )
    for warning in results.warnings:
        yield Text(warning, warning=True)
    yield from short_tasks(results)
    yield from long_tasks(results)
    blocks = blocks_of(results)
    yield from by_length(results, blocks.get(BUCKETS, ()), f"{BUCKETS} by length")
    for block, tasks in blocks.items():
        suite = suite_of(tasks[0])
        if suite in LONG or suite == "short":
            continue
        if suite == "ruler" and several_lengths(results, tasks):
            yield from by_length(results, tasks, "RULER by length", level=2)
            continue
        yield from other_tasks(results, tasks, HEADINGS.get(block, block))
        if suite == "ruler":
            continue
        for task in tasks:
            view = VIEWS.get(task, by_cell)
            yield from view(results, task, task)
    yield from by_sizes(results)
    yield from cost_curves(costs)
    yield from what_was_read(results)
    yield from first_answers(results)
    yield from how_it_was_run(results)


def _distinct(blocks: list[Block]) -> list[Block]:
    """Figures with file names of their own, whatever the tasks are called."""
    taken: dict[str, int] = {}
    found: list[Block] = []
    for block in blocks:
        if isinstance(block, Figure):
            times = taken[block.name] = taken.get(block.name, 0) + 1
            if times > 1:
                stem = block.name.removesuffix(".png")
                block = Figure(f"{stem}--{times}.png", block.alt, block.png)
        found.append(block)
    return found
