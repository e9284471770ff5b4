"""Heat maps side by side, as PNG bytes. Knows nothing of tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from allmem.evaluation.report.drawing import INK, SHARED, drawing, named

__all__ = ["Panel", "heat_maps"]

ACROSS = 3
"""Maps in a row at most."""


@dataclass(frozen=True)
class Panel:
    """One heat map: ``values[row][column]``, ``None`` where nothing was measured."""

    title: str
    values: Sequence[Sequence[float | None]]
    hatched: Sequence[Sequence[bool]]


def heat_maps(
    panels: Sequence[Panel],
    columns: Sequence[str],
    rows: Sequence[str],
    x: str,
    y: str,
    scale: str,
    *,
    low: float,
    high: float,
    hatched: str = "",
) -> bytes:
    """Heat maps side by side, with one scale of colours and every value written in its cell.

    Args:
        scale: what the colours mean, with its unit.
        low, high: ends of that scale.
        hatched: what hatched cells are.
    """
    across = min(ACROSS, len(panels))
    down = -(-len(panels) // across)
    wide = max(3.4, 1.0 + 0.62 * len(columns))
    tall = max(2.6, 1.4 + 0.42 * len(rows))
    with drawing(wide * across + 1.2, tall * down, down, across) as (places, buffer):
        from matplotlib import colormaps
        from matplotlib.patches import Rectangle

        colours = colormaps["cividis"]
        for axes in places[len(panels) :]:
            axes.set_axis_off()
        for number, (axes, panel) in enumerate(zip(places, panels, strict=False)):
            grid = [[math.nan if v is None else v for v in row] for row in panel.values]
            image = axes.imshow(grid, cmap=colours, vmin=low, vmax=high, aspect="auto")
            for r, row in enumerate(panel.values):
                for c, value in enumerate(row):
                    if panel.hatched[r][c]:
                        axes.add_patch(
                            Rectangle(
                                (c - 0.5, r - 0.5), 1, 1, fill=False, hatch="////", linewidth=0
                            )
                        )
                    if value is not None:
                        at = (value - low) / (high - low or 1)
                        _write(axes, c, r, f"{value:.0f}", colours(at), panel.hatched[r][c])
            axes.set_xticks(range(len(columns)), columns)
            axes.set_yticks(range(len(rows)), rows if number % across == 0 else [""] * len(rows))
            axes.set(xlabel=x, ylabel="" if number % across else y, title=named(panel.title))
            axes.tick_params(length=0)
            for spine in axes.spines.values():
                spine.set_visible(False)
        figure = places[0].figure
        figure.colorbar(image, ax=places, label=scale, pad=0.02)
        if hatched and any(any(map(any, panel.hatched)) for panel in panels):
            figure.supxlabel(f"hatched: {hatched}", fontsize="small", color=SHARED)
    return buffer.getvalue()


def _write(axes: Any, x: int, y: int, text: str, colour: tuple[float, ...], hatched: bool) -> None:
    red, green, blue = colour[:3]
    # Brightness as the eye weighs it (ITU-R BT.601).
    dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
    box = {"facecolor": colour, "edgecolor": "none", "pad": 1.5} if hatched else None
    ink = "#ffffff" if dark else INK
    axes.text(x, y, text, ha="center", va="center", color=ink, fontsize=9, bbox=box)
