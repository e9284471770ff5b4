"""The paper's figure 3: FLOPs and cache against length, for full attention, window with sinks, and
AllMem."""

from __future__ import annotations

import os
from typing import Any

from allmem.cost.comparing import Comparison
from allmem.cost.lengths import length_name
from allmem.errors import AllMemError
from allmem.files import atomic_path

__all__ = ["draw_cache", "draw_flops", "save_figure"]

STYLES = {
    "full attention": {"color": "#d62728", "marker": "o"},
    "window and sinks": {"color": "#7f7f7f", "marker": "s", "linestyle": "--"},
    "AllMem": {"color": "#1f77b4", "marker": "^"},
}


def save_figure(path: str | os.PathLike[str], comparison: Comparison, title: str) -> None:
    """Write a PNG.

    Raises:
        AllMemError: if matplotlib is missing or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise AllMemError('the plot needs matplotlib; run: pip install "allmem[eval]"') from error
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    flops, cache = figure.subplots(1, 2)
    draw_flops(flops, comparison)
    draw_cache(cache, comparison)
    figure.suptitle(title)
    with atomic_path(path) as part:
        figure.savefig(part, format="png", dpi=120)


def draw_flops(axes: Any, comparison: Comparison) -> None:
    """FLOPs of a whole prefill in attention and memory layers."""
    lines = {
        name: [comparison.prefill(name, i) * n for i, n in enumerate(comparison.lengths)]
        for name in comparison.costs
    }
    _draw(axes, comparison, lines)
    axes.set(title="Prefill, attention and memory layers", ylabel="FLOPs")


def draw_cache(axes: Any, comparison: Comparison) -> None:
    """Bytes kept."""
    lines = {
        name: [comparison.cache(name, i) for i in range(len(comparison.lengths))]
        for name in comparison.costs
    }
    _draw(axes, comparison, lines)
    axes.set(title="Cache", ylabel="bytes")


def _draw(axes: Any, comparison: Comparison, lines: dict[str, list[float]]) -> None:
    for name, values in lines.items():
        axes.plot(comparison.lengths, values, label=name, markersize=4, **STYLES.get(name, {}))
    last = len(comparison.lengths) - 1
    full, ours = lines["full attention"][last], lines["AllMem"][last]
    axes.annotate(
        f"{ours / full:.1%}",
        (comparison.lengths[last], ours),
        textcoords="offset points",
        xytext=(0, 7),
        ha="right",
        color=STYLES["AllMem"]["color"],
    )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(comparison.lengths, [length_name(n) for n in comparison.lengths])
    axes.set_xlabel("context length (tokens)")
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
