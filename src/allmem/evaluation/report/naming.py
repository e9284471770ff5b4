"""What cells and measures of tasks are called in a report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["AXES", "FLAGS", "CellValue", "meaning", "measure", "title_of", "told"]

CellValue = str | int | float

AXES = {
    "length": "length (tokens)",
    "position": "position (tokens)",
    "chunks": "chunks read since",
    "pairs": "pairs",
    "turn": "turn",
    "values": "values that the fact has had",
    "examples": "examples seen",
    "fillers": "fillers read since",
    "windows": "windows read since the exchange",
    "depth": "depth (%; of what is out of sight, in probes)",
    "gap": "distance (share of what is out of sight)",
}
"""What names of cells mean on an axis, those that make the best one first; others stand as they
are."""
MEASURES = {
    "nll": "loss (nats per token)",
    "exact": "recalled",
    "stale": "answered with a former value",
    "copy_exact": "recalled by a copy that was asked nothing else",
    "choice": "right choice",
    "digits": "digits recalled",
    "answer_accuracy": "tokens of the right answer that come first",
}
FLAGS = {
    "beyond": "within the attention's sight: no memory is needed",
    "beyond_reach": "beyond the length that the model was made for",
}
"""Cells that only stand out, whatever their value."""
UNITS = {100.0: "%", 1.0: ""}


def measure(metric: str, scale: float) -> str:
    """A measure with its unit."""
    unit = UNITS.get(scale, f"times {scale:g}")
    name = MEASURES.get(metric, metric.replace("_", " "))
    return f"{name} ({unit})" if unit else name


def meaning(flag: str) -> str:
    """What a marked cell is."""
    return FLAGS.get(flag, flag.replace("_", " "))


def title_of(where: Mapping[str, Any]) -> str:
    """``language en, needles 2``."""
    return ", ".join(
        f"{name} {told(value, name)}" for name, value in where.items() if value is not None
    )


def told(value: CellValue | None, name: str = "") -> str:
    """A value of a cell; of a name's where that matters."""
    if value is None:
        return "–"
    if name == "depth" and isinstance(value, float):
        # A share of the text.
        return f"{100 * value:g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
