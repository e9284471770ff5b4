"""A report as Markdown, with plots as files beside it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from allmem.evaluation.report.blocks import Block, Figure, Heading, Table, Text, Value

__all__ = ["to_markdown"]

SPECIAL = re.compile(r"[\\`*~|\[\]#$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
"""What Markdown would take for markup, or a table for the end of a cell. An underscore within a
word is none."""


def escaped(text: str) -> str:
    """A text that Markdown shows as it stands, on one line."""
    plain = SPECIAL.sub(lambda found: "\\" + found.group(), " ".join(text.split()))
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _cell(value: str | Value) -> str:
    if isinstance(value, str):
        return escaped(value)
    text = escaped(value.text)
    if value.mark in ("better", "worse"):
        text = f"**{text}**"
    return f"{text} ({escaped(value.count)})" if value.count else text


def _table(table: Table) -> str:
    marks = [":--" if i < table.names or table.texts else "--:" for i in range(len(table.columns))]
    lines = [[escaped(column) for column in table.columns], marks]
    lines += [[_cell(value) for value in row] for row in table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _block(block: Block) -> str:
    match block:
        case Heading():
            return f"{'#' * block.level} {escaped(block.text)}"
        case Text():
            return f"> **Note.** {escaped(block.text)}" if block.warning else escaped(block.text)
        case Table():
            return _table(block)
        case Figure():
            return f"![{escaped(block.alt)}]({block.name})"


def to_markdown(blocks: Sequence[Block]) -> str:
    """The whole file."""
    return "\n\n".join(_block(block) for block in blocks) + "\n"
