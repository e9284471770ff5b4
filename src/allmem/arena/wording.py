"""How an arena's report words its numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from allmem.arena.config import ArenaConfig
from allmem.arena.entrants import TEACHER, WINDOW
from allmem.arena.figures import ROUNDING, Figure, single
from allmem.arena.standings import TESTED_SEEDS, Standing
from allmem.choices import Limits
from allmem.evaluation.bootstrap import LEVEL, Score
from allmem.evaluation.report.blocks import Value
from allmem.mixers.ablations import ABLATIONS

__all__ = [
    "about_arena",
    "difference_of",
    "figure_of",
    "kilobytes",
    "limits_of",
    "plain",
    "seeds_of",
    "share_of",
    "shown_range",
    "sizes_of",
]


def figure_of(one: Standing, name: str) -> Value:
    """``97.3 ± 0.4``; of one that diverged, with how many seeds of how many."""
    if one.diverged:
        lost = len(one.diverged)
        note = f"{lost} of {lost + len(one.figures)}"
        return Value("diverged", note, title="; ".join(one.diverged.values()))
    figures = one.seeds(name)
    if not figures:
        return Value("–")
    score, at = one.score(name), _digits(figures[0])
    low, high = shown_range(score, figures[0])
    text = _number(score.mean, at) + _half(score, at)
    alone = len(figures) == 1 and None not in one.figures
    return Value(
        text,
        "one seed" if alone else "",
        f"95 % interval {low:.{at + 1}f} to {high:.{at + 1}f}{_over(len(figures))}",
    )


def shown_range(score: Score, figure: Figure) -> tuple[float, float]:
    """The ends of a mean's interval, of a percentage within 0 and 100."""
    if figure.unit != "%":
        return score.low, score.high
    return max(0.0, score.low), min(100.0, score.high)


def seeds_of(one: Standing, name: str) -> str:
    """``97.1, 97.6``."""
    if None in one.figures:
        return "untrained"
    return ", ".join(_number(single(f), _digits(f)) for f in one.seeds(name))


def difference_of(
    one: Standing, reference: Standing, name: str, chance: float | None = None
) -> Value:
    """How much more than the reference.

    Args:
        chance: its p-value, corrected (``standings.chances``), by which it is marked.
    """
    ours, base = one.paired(reference, name)
    if one is reference or not ours or not base:
        return Value("")
    score, at = one.more_than(reference, name), _digits(ours[0])
    text = f"{score.mean:+.{at}f}" + _half(score, at)
    title = (
        f"95 % interval {score.low:+.{at + 1}f} to {score.high:+.{at + 1}f}"
        f"{_over(max(len(ours), len(base)))}"
    )
    if chance is None:
        return Value(text, title=title)
    title += f", p = {chance:.2g}"
    if chance >= 1 - LEVEL:
        return Value(text, title=title)
    better = (score.mean > 0) == ours[0].higher_is_better
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
        "95 % intervals are Student's t over seeds, of other seeds asked the same questions; what "
        "has one seed, or is not trained, has a bootstrap interval over questions alone. "
        "Differences are paired by seed and marked where p < 0.05 in a paired t test over "
        f"{TESTED_SEEDS} seeds or more, with Holm's correction for all that are compared with "
        f"{arena.reference}. Of an entrant that diverged with any seed no mean is taken. Tokens a "
        "second were measured as the jobs ran, whatever else the machine did."
    )
    made_with = sorted(set().union(*(one.made_with for one in standings)))
    if len(made_with) > 1:
        yield f"Not all of it was made with the same: {'; '.join(made_with)}."
    elif made_with:
        yield f"Made with {made_with[0]}."


def _half(score: Score, digits: int) -> str:
    """`` ± 0.4``; nothing of an interval without a width."""
    half = (score.high - score.low) / 2
    return f" ± {half:.{digits}f}" if half > ROUNDING else ""


def _over(seeds: int) -> str:
    return f" over {seeds} seeds" if seeds > 1 else " over questions alone"


def _number(value: float, digits: int) -> str:
    """Without a sign before a zero."""
    return f"{value:.{digits}f}" if abs(value) >= 0.5 * 10**-digits else f"{0:.{digits}f}"


def _digits(figure: Figure) -> int:
    return 1 if figure.unit == "%" else 3
