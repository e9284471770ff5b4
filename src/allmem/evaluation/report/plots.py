"""Lines and bars with their intervals, as PNG bytes. Knows nothing of tasks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from allmem.cost.lengths import length_name
from allmem.evaluation.report.drawing import (
    COLOURS,
    INK,
    MARKERS,
    SHARED,
    drawing,
    legend,
    named,
)
from allmem.evaluation.scores import Score

__all__ = ["Series", "bars", "lines", "series"]

WIDEST = 11.0
"""Inches."""
CROWDED = 1.4
"""Factor between two ticks below which one of them goes."""


@dataclass(frozen=True)
class Series:
    """What is drawn in one colour."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    mark: float | None = None
    """A place on the x axis of its own, such as the end of a window."""


def series(
    label: str, scores: Iterable[tuple[float, Score | None]], mark: float | None = None
) -> Series:
    """Of scores at places; those without a score are left out."""
    found = [(at, score) for at, score in scores if score is not None and score.n]
    return Series(
        label,
        [at for at, _ in found],
        [score.mean for _, score in found],
        [score.low for _, score in found],
        [score.high for _, score in found],
        mark,
    )


def lines(
    drawn: Sequence[Series],
    x: str,
    y: str,
    *,
    title: str = "",
    doubling: bool = False,
    powers: bool = False,
    bottom: float | None = None,
    top: float | None = None,
    mark: str = "",
) -> bytes:
    """A line per series, with its interval as a band.

    Args:
        x, y: what the axes show, with units.
        doubling: whether equal distances on the x axis are equal factors.
        powers: the same on the y axis.
        bottom, top: where the y axis begins, and ends at least.
        mark: what the vertical lines at ``Series.mark`` are.
    """
    with drawing(8, 3.8) as ((axes,), buffer):
        marks = [one.mark for one in drawn if one.mark is not None]
        marked = False
        for i, one in enumerate(drawn):
            colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
            # The later ones are smaller, so that none hides another that is in the same place.
            size = max(3.0, 7.0 - i) if len(one.x) <= 30 else 0.0
            label = named(one.label)
            line = axes.plot(one.x, one.y, color=colour, marker=marker, label=label)[0]
            line.set(markersize=size, clip_on=False, zorder=3)
            axes.fill_between(one.x, one.low, one.high, color=colour, alpha=0.18, linewidth=0)
            if one.mark is not None and max(one.x, default=0) > one.mark:
                shared = marks.count(one.mark) > 1
                tint = SHARED if shared else colour
                axes.axvline(one.mark, color=tint, linestyle="--", linewidth=1)
                marked = True
        if marked and mark:
            axes.plot([], [], color=SHARED, linestyle="--", linewidth=1, label=mark)
        everywhere = sorted({at for one in drawn for at in one.x})
        if doubling and everywhere and everywhere[0] > 0:
            axes.set_xscale("log", base=2)
        elif doubling and len(everywhere) > 1:
            axes.set_xscale("symlog", base=2, linthresh=everywhere[1], linscale=0.5)
        if powers:
            _by_powers(axes.yaxis)
        if len(everywhere) <= 9:
            ticks = _apart(everywhere) if doubling else everywhere
            axes.set_xticks(ticks, [_tick(at) for at in ticks])
        else:
            axes.xaxis.set_major_formatter(lambda at, _: _tick(at))
        axes.minorticks_off()
        axes.grid(axis="y", color="#e3e7eb")
        axes.set_axisbelow(True)
        axes.set(xlabel=x, ylabel=y, title=title)
        _widen(axes, bottom, top)
        legend(axes, len(drawn) + marked)
    return buffer.getvalue()


def _by_powers(axis: Any) -> None:
    """Equal distances are equal factors; ticks say 200 k or 1 M. The figures' own powers of ten
    would be formulas."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

    axis.axes.set_yscale("log")
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(EngFormatter())
    axis.set_minor_locator(NullLocator())


def _tick(at: float) -> str:
    return length_name(round(at)) if at == round(at) else f"{at:g}"


def _apart(ticks: Sequence[float]) -> list[float]:
    """Those whose labels would not run into each other, where equal distances are factors."""
    kept: list[float] = []
    for at in ticks:
        if kept and kept[-1] > 0 and at < CROWDED * kept[-1]:
            kept.pop()
        kept.append(at)
    return kept


def _widen(axes: Any, bottom: float | None, top: float | None) -> None:
    """Begin exactly at ``bottom``, and end no lower than ``top``."""
    low, high = axes.get_ylim()
    axes.set_ylim(low if bottom is None else bottom, high if top is None else max(top, high))


def bars(
    categories: Sequence[str], drawn: Sequence[Series], x: str, y: str, *, title: str = ""
) -> bytes:
    """A group of bars for each category, a bar for each series, with its interval.

    Args:
        drawn: ``x`` are the indices of the categories that it has.
    """
    width = 0.8 / max(1, len(drawn))
    wide = 2.4 + 0.3 * len(categories) * (1 + len(drawn))
    with drawing(min(WIDEST, max(7.0, wide)), 3.8) as ((axes,), buffer):
        for i, one in enumerate(drawn):
            at = [place + (i - (len(drawn) - 1) / 2) * width for place in one.x]
            # A bar may stand outside of its interval: resampling is no proof against bias.
            below = [max(0.0, y - low) for y, low in zip(one.y, one.low, strict=True)]
            above = [max(0.0, high - y) for y, high in zip(one.y, one.high, strict=True)]
            axes.bar(
                at, one.y, width * 0.94, color=COLOURS[i % len(COLOURS)], label=named(one.label)
            )
            axes.errorbar(
                at, one.y, [below, above], fmt="none", ecolor=INK, elinewidth=1, capsize=2
            )
        axes.axhline(0, color=INK, linewidth=0.8)
        lean = max(map(len, categories), default=0) * len(categories) > 70
        axes.set_xticks(
            range(len(categories)),
            categories,
            **({"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if lean else {}),
        )
        axes.grid(axis="y", color="#e3e7eb")
        axes.set_axisbelow(True)
        axes.set(xlabel=x, ylabel=y, title=title)
        legend(axes, len(drawn))
    return buffer.getvalue()
