"""How numbers are written in a report."""

from __future__ import annotations

from typing import Literal

from allmem.evaluation.report.blocks import Value
from allmem.evaluation.scores import Score

__all__ = ["NOTHING", "difference", "digits", "measured", "number", "share"]

FEWEST = 5
"""Rows; resampling fewer gives intervals that are far too narrow."""
NOTHING = Value("–", title="nothing was measured")


def digits(scale: float) -> int:
    """Decimals: a tenth of a percent, a thousandth of a nat."""
    return 1 if scale >= 10 else 3


def number(value: float) -> str:
    """A whole number, with thousands apart."""
    return f"{value:,.0f}"


def share(part: int, whole: int) -> str:
    """``12.5 %``."""
    return f"{100 * part / whole:.1f} %" if whole else "–"


def measured(score: Score | None, scale: float, missing: int = 0) -> Value:
    """A score with its interval and count; without an interval where all rows were alike.

    Args:
        missing: how many more rows it should be a mean of, when the run is finished.
    """
    if score is None or score.n == 0:
        return NOTHING
    at = digits(scale)
    text, half = f"{score.mean:.{at}f}", (score.high - score.low) / 2
    if half > 0:
        text += f" ± {half:.{at}f}"
    count = f"n={score.n} of {score.n + missing}" if missing else f"n={score.n}"
    return Value(text, count, _interval(score, at))


def difference(score: Score | None, scale: float, higher_is_better: bool) -> Value:
    """How much more than the first model, and whether the interval leaves out zero: told where
    there are rows enough, and not all alike, for an interval to mean something."""
    if score is None or score.n == 0:
        return NOTHING
    at = digits(scale)
    text, count, title = f"{score.mean:+.{at}f}", f"n={score.n}", _interval(score, at)
    half = (score.high - score.low) / 2
    if half > 0:
        text += f" ± {half:.{at}f}"
    if score.low <= 0 <= score.high:
        return Value(text, count, title + "; zero lies within")
    if half == 0 or score.n < FEWEST:
        return Value(text, count, title + "; too few rows, or all alike, to tell it from chance")
    mark: Literal["better", "worse"]
    mark = "better" if (score.mean > 0) == higher_is_better else "worse"
    return Value(f"{text} {mark}", count, title + "; zero lies outside", mark)


def _interval(score: Score, at: int) -> str:
    return (
        f"{score.mean:.{at + 2}f}, 95 % interval {score.low:.{at + 2}f} to "
        f"{score.high:.{at + 2}f}, {score.n} rows"
    )
