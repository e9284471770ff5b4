"""What the models said: the beginnings of a few answers to every task, side by side.

Scores do not show that a model said nothing, or the same thing every time; answers do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from allmem.evaluation.report.blocks import Block, Heading, Table, Value
from allmem.evaluation.report.results import Results

__all__ = ["first_answers"]

EACH = 2
"""Answers to every task."""
LONGEST = 120
"""Characters of an answer that are shown."""


def first_answers(results: Results) -> Iterator[Block]:
    """A table of texts, or nothing if no task asks for any."""
    rows: list[list[str | Value]] = []
    for task in results.tasks:
        said = {
            column.label: {row["id"]: _text(row) for row in column.rows.get(task, ())}
            for column in results.columns
        }
        ids = dict.fromkeys(
            name for texts in said.values() for name, text in texts.items() if text is not None
        )
        for place, name in enumerate(list(ids)[:EACH]):
            texts = [said[label].get(name) for label in results.labels]
            shown = ["–" if text is None else _beginning(text) for text in texts]
            rows.append(["" if place else task, name, *shown])
    if rows:
        yield Heading("First answers")
        yield Table(["Task", "Row", *results.labels], rows, names=2, texts=True)


def _text(row: Mapping[str, Any]) -> str | None:
    """The answer of a row, or the first of several."""
    if isinstance(row.get("answers"), list) and row["answers"]:
        row = row["answers"][0] if isinstance(row["answers"][0], dict) else row
    said = row.get("prediction")
    return said if isinstance(said, str) else None


def _beginning(text: str) -> str:
    told = "".join(c if c.isprintable() else "�" for c in " ".join(text.split()))
    if not told:
        return "(nothing)"
    return told if len(told) <= LONGEST else f"{told[:LONGEST]}…"
