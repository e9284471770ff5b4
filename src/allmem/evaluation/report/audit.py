"""The causal audit: what another memory costs, by sort of token, a bar for each intervention."""

from __future__ import annotations

import re
from collections.abc import Iterator

from allmem.evaluation.report import plots
from allmem.evaluation.report.blocks import Block, Figure, Heading, Table, Text, Value
from allmem.evaluation.report.results import Results, score_of
from allmem.evaluation.report.wording import measured
from allmem.evaluation.scores import Cell, TaskScores, cells_of

__all__ = ["audit"]

SORTS = ("kind", "seen")
"""Cells that say what sort of token it is; the others are averaged over."""
VARIANTS = ("reset", "shuffled", "swapped")
LOSS = "intact_nll"
"""The measure that is a loss, with which the variants are compared."""


def audit(results: Results, task: str, heading: str) -> Iterator[Block]:
    """A plot and a table for every model that has a memory."""
    yield Heading(heading, 3)
    yield Text(
        "How much worse a text goes on, in nats per token, when the memory that was written of "
        "what came before is reset to its start, its rows are shuffled, or it is swapped for "
        "another book's. The window stays. A bar above zero: the memory helped with such tokens. "
        "Recalled: words that stood before, but only further back than the attention sees."
    )
    for label, one in results.of(task).items():
        cells = cells_of(one.scored, SORTS)
        variants = [name for name in VARIANTS if name in one.metrics]
        if not cells or not variants:
            continue
        names = [" ".join(str(value) for _, value in cell) for cell in cells]
        png = plots.bars(
            names,
            [_series(one, variant, cells) for variant in variants],
            "sort of token",
            "loss added (nats per token)",
            title=label,
        )
        slug = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")
        yield Figure(f"probes-audit-{slug}.png", f"{task}: loss added by sort of token", png)
        yield _table(one, label, cells, names, variants)


def _series(one: TaskScores, variant: str, cells: list[Cell]) -> plots.Series:
    scores = ((float(i), score_of(one, variant, dict(cell))) for i, cell in enumerate(cells))
    return plots.series(variant, scores)


def _table(
    one: TaskScores, label: str, cells: list[Cell], names: list[str], variants: list[str]
) -> Table:
    measures = [*variants, *([LOSS] if LOSS in one.metrics else [])]
    rows: list[list[str | Value]] = []
    for name, cell in zip(names, cells, strict=True):
        scores = [score_of(one, measure, dict(cell)) for measure in measures]
        rows.append([name, *(measured(score, one.scale) for score in scores)])
    columns = [
        f"{label}: sort of token",
        *variants,
        *(["loss, intact"] if LOSS in measures else []),
    ]
    return Table(columns, rows)
