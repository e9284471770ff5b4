"""What all plots of a report share: a figure that becomes PNG bytes, colours, markers, labels.

The same numbers give the same bytes, whatever a user's matplotlib is set
to; colours are told apart by the colour-blind, and lines by their markers too.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any

from allmem.errors import AllMemError

__all__ = ["COLOURS", "INK", "MARKERS", "SHARED", "drawing", "legend", "named"]

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")
"""Okabe and Ito, "Color Universal Design" (2008), without the yellow, which is faint on white."""
MARKERS = "osD^vPX"
SHARED = "#5d6670"
"""What belongs to no series alone."""
INK = "#1b1f24"
LONGEST_LABEL = 32
DPI = 200
"""Sharp on a screen with two dots to a pixel."""


@contextlib.contextmanager
def drawing(
    width: float, height: float, rows: int = 1, columns: int = 1
) -> Iterator[tuple[Any, io.BytesIO]]:
    """A figure's axes, row by row, and a buffer that holds its PNG afterwards.

    Raises:
        AllMemError: if matplotlib is missing.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise AllMemError('plots need matplotlib; run: pip install "allmem[eval]"') from error
    settings = {
        **mpl.rcParamsDefault,
        "axes.edgecolor": "#8a929a",
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlesize": "medium",
        "font.size": 10,
        "hatch.color": "#8a929a",
        "hatch.linewidth": 0.6,
        "legend.frameon": False,
        # A dollar sign in a model's name is no formula.
        "text.parse_math": False,
    }
    # Of the process, not of the plot.
    settings.pop("backend", None)
    with mpl.rc_context(settings):
        figure = Figure(figsize=(width, height), layout="constrained")
        buffer = io.BytesIO()
        yield list(figure.subplots(rows, columns, squeeze=False).flat), buffer
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})


def named(label: str) -> str:
    """A label as a legend shows it: short, and shown at all."""
    if len(label) > LONGEST_LABEL:
        label = f"{label[: LONGEST_LABEL // 2]}…{label[-LONGEST_LABEL // 2 + 1 :]}"
    # Matplotlib leaves out what begins with an underscore.
    return f" {label}" if label.startswith("_") else label


def legend(axes: Any, entries: int) -> None:
    """Beside the plot, where it hides nothing; none for a single entry."""
    if entries > 1:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.5)
