"""How an arena's report words its numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from allmem.arena.config import ArenaConfig
from allmem.arena.entrants import TEACHER, WINDOW
from allmem.arena.figures import Figure, single
from allmem.arena.standings import Standing
from allmem.evaluation.report.blocks import Value
from allmem.mixers.ablations import ABLATIONS
from allmem.mixers.matching import Limits

__all__ = [
    "about_arena",
    "difference_of",
    "figure_of",
    "kilobytes",
    "limits_of",
    "plain",
    "seeds_of",
    "share_of",
    "sizes_of",
]

FEW_SEEDS = 3
"""Below which a difference is not called one."""


def figure_of(one: Standing, name: str) -> Value:
    """``97.3 ± 0.4``, and how many seeds."""
    figures = one.seeds(name)
    lost = len(one.diverged)
    note = f"{lost} of {lost + len(figures)} diverged" if lost else ""
    if not figures:
        return Value("diverged" if lost else "–", note, title="; ".join(one.diverged.values()))
    score = one.score(name)
    at = _digits(figures[0])
    half = (score.high - score.low) / 2
    text = _number(score.mean, at) + (f" ± {half:.{at}f}" if half > 0 else "")
    return Value(text, note, f"95 % interval {score.low:.{at + 1}f} to {score.high:.{at + 1}f}")


def seeds_of(one: Standing, name: str) -> str:
    """``97.1, 97.6``."""
    if None in one.figures:
        return "untrained"
    return ", ".join(_number(single(f), _digits(f)) for f in one.seeds(name))


def difference_of(one: Standing, reference: Standing, name: str) -> Value:
    """How much more than the reference, marked where the interval leaves out zero."""
    figures = one.seeds(name)
    score = one.more_than(reference, name)
    if one is reference or not score.n:
        return Value("")
    at = _digits(figures[0])
    half = (score.high - score.low) / 2
    text = f"{score.mean:+.{at}f}" + (f" ± {half:.{at}f}" if half > 0 else "")
    title = f"95 % interval {score.low:+.{at + 1}f} to {score.high:+.{at + 1}f}"
    seeds = min(len(side.figures) for side in (one, reference) if None not in side.figures)
    if score.low <= 0 <= score.high or half == 0 or seeds < FEW_SEEDS:
        return Value(text, title=title)
    better = (score.mean > 0) == figures[0].higher_is_better
    return Value(text, title=title, mark="better" if better else "worse")


def limits_of(one: Standing, limits: Limits) -> str:
    """Whether it was matched."""
    contender = one.contender
    if contender.name in (TEACHER, WINDOW):
        return "reference row"
    outside = contender.outside(limits)
    parts = []
    if "parameters" in outside:
        parts.append(f"parameters {contender.parameter_difference:+.0%}")
    if "state" in outside:
        parts.append(f"state {contender.state_difference:+.0%}")
    if parts:
        return "unmatched: " + ", ".join(parts)
    return "matched" if contender.parameter_difference is not None else "matched in bytes"


def sizes_of(one: Standing) -> str:
    """What an ablation has otherwise than the reference."""
    changed = {**ABLATIONS[one.contender.ablation or ""], **one.contender.sizes}
    return ", ".join(f"{name} = {value}" for name, value in changed.items())


def share_of(difference: float | None) -> str:
    """`` (+1.2 %)``; nothing for none."""
    return "" if not difference else f" ({100 * difference:+.1f} %)"


def kilobytes(number: int) -> str:
    """``152.1 kB``."""
    if number == 0:
        return "0"
    return f"{number / 1e6:,.3g} MB" if number >= 1e6 else f"{number / 1e3:,.1f} kB"


def plain(number: float) -> str:
    """``1,234``; nothing where it is not known."""
    return f"{number:,.0f}" if math.isfinite(number) else ""


def about_arena(arena: ArenaConfig, standings: Sequence[Standing], length: int) -> Iterator[str]:
    """What a reader has to know of how it was run."""
    training, sizes = arena.training, arena.sizes
    what = "associative recall" if arena.recall is not None else "the data"
    budget = f"{training.steps} steps" if training.steps else f"{training.tokens} tokens"
    seeds = ", ".join(map(str, arena.seeds))
    yield (
        f"Teacher: {arena.teacher}. All entrants are converted from it with a window of "
        f"{sizes.window} and {sizes.sinks} sinks (memories that write in chunks: chunks of "
        f"{sizes.steps}) and distilled on {what}: {budget} of {training.batch} x "
        f"{training.accumulate} rows, the same rows in the same order for everybody with one seed. "
        f"Seeds: {seeds}."
    )
    yield (
        f"Sizes are solved for, so that everybody has the parameters of {arena.reference} within "
        f"{arena.limits.parameters:.0%} and its bytes of state within {arena.limits.state:.0%}; "
        "what has nothing to train, its bytes alone. State counts what a layer keeps of a text "
        f"of {length:,} tokens beyond what the window keeps; so {TEACHER}'s is the rest of the "
        f"key-value cache, and {WINDOW}'s nothing."
    )
    if arena.special_stages:
        stages = {one.contender.name: ", ".join(one.stages) for one in standings if one.stages}
        yield "Stages: " + "; ".join(f"{name}: {value}" for name, value in stages.items()) + "."
    else:
        yield (
            f"Everybody has the same stages ({training.stage}). Starting a memory beside single "
            "query heads and solving for its output projection exist for the paper's memory alone, "
            "so nobody has them here (special_stages: true turns them on)."
        )
    yield (
        "Intervals are 95 % percentile bootstrap intervals that draw seeds and questions anew, "
        "each by itself; differences are paired by seed and question. With three seeds an interval "
        "is rather too narrow: the column by seed shows all there is. Tokens a second were "
        "measured as the jobs ran, whatever else the machine did."
    )


def _number(value: float, digits: int) -> str:
    """Without a sign before a zero."""
    return f"{value:.{digits}f}" if abs(value) >= 0.5 * 10**-digits else f"{0:.{digits}f}"


def _digits(figure: Figure) -> int:
    return 1 if figure.unit == "%" else 3
