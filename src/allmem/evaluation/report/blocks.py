"""What a report is made of, before it is Markdown or HTML: headings, paragraphs, tables, figures.

Texts are plain: whoever renders them escapes them, since some were written by a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["Block", "Figure", "Heading", "Table", "Text", "Value"]


@dataclass(frozen=True)
class Value:
    """A number in a table."""

    text: str
    count: str = ""
    """Of rows, such as ``n=200``: smaller, where that is possible."""
    title: str = ""
    """More about it, where there is room: on hover."""
    mark: Literal["", "better", "worse", "aside"] = ""
    """Clearly above or below what it is compared with, or no number of this report."""


@dataclass(frozen=True)
class Table:
    """Rows of texts and numbers."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str | Value]]
    names: int = 1
    """So many columns at the left name a row."""
    texts: bool = False
    """Whether the others hold texts, in place of numbers."""


@dataclass(frozen=True)
class Heading:
    """Begins a section."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Figure:
    """A plot."""

    name: str
    """Of its file, without a folder."""
    alt: str
    """What it shows, in words."""
    png: bytes


Block = Heading | Text | Table | Figure
