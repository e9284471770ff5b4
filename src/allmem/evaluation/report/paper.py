"""The paper's own numbers, as a reference beside what was measured.

They come from other models and other runs: shown, never averaged or compared with.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from allmem.evaluation.benchmarks import benchmark

__all__ = ["PaperRow", "PaperTable", "paper_tables"]


@dataclass(frozen=True)
class PaperRow:
    """A line of a table."""

    group: str
    name: str
    """As the paper calls the task."""
    task: str
    """As this library does."""
    scores: Sequence[float]
    """One for each of the table's models, as printed."""
    length: int | str | None = None
    """Average tokens, as printed."""
    protocol: str | None = None
    """The one under which this library asks the same as the paper did; ``None`` for any. GPQA is
    ten answers in the paper, and officially a choice by likelihood."""


@dataclass(frozen=True)
class PaperTable:
    """Table 1, 2 or 3."""

    number: int
    models: Sequence[str]
    rows: Mapping[str, PaperRow]
    """By this library's name of the task."""
    averages: Mapping[str, Sequence[float]]
    """By group, as printed."""

    @property
    def heading(self) -> str:
        """``paper, Qwen3-0.6B: plain / SWA-Sinks / Mamba / AllMem``."""
        base = self.models[0]
        kinds = [model.removeprefix(base).strip("-") or "plain" for model in self.models]
        return f"paper, {base}: {' / '.join(kinds)}"

    def row_for(self, task: str, headers: Iterable[Mapping[str, Any]]) -> PaperRow | None:
        """The line of a task, if what was run is what the paper ran.

        Args:
            headers: of the files of its rows.
        """
        row = self.rows.get(task)
        if row is None or row.protocol is None:
            return row
        run = {(header.get("setting") or {}).get("protocol") for header in headers}
        return row if row.protocol in run else None

    def by_base(self) -> list[PaperTable]:
        """A table for each base model and what was made of it: table 1 holds two."""
        starts = [0]
        for place, model in enumerate(self.models):
            if not model.startswith(self.models[starts[-1]]):
                starts.append(place)
        ends = [*starts[1:], len(self.models)]
        return [self._part(start, end) for start, end in zip(starts, ends, strict=True)]

    def _part(self, start: int, end: int) -> PaperTable:
        rows = {task: replace(row, scores=row.scores[start:end]) for task, row in self.rows.items()}
        averages = {group: scores[start:end] for group, scores in self.averages.items()}
        return PaperTable(self.number, self.models[start:end], rows, averages)


@functools.cache
def paper_tables() -> tuple[PaperTable, ...]:
    """All of them."""
    return tuple(
        PaperTable(
            table["number"],
            table["models"],
            {row["task"]: PaperRow(**row) for row in table["rows"]},
            {average["group"]: average["scores"] for average in table.get("averages", ())},
        )
        for table in benchmark("paper")["tables"]
    )
