"""The report of an arena: ``report.md``, ``report.html``, ``report.json`` and a plot."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from allmem.arena.config import ArenaConfig
from allmem.arena.entrants import TEACHER, WINDOW
from allmem.arena.figures import Figure, single
from allmem.arena.standings import TESTED_SEEDS, Standing, chances
from allmem.arena.wording import (
    about_arena,
    difference_of,
    figure_of,
    kilobytes,
    limits_of,
    plain,
    seeds_of,
    share_of,
    shown_range,
    sizes_of,
)
from allmem.errors import AllMemError
from allmem.evaluation.bootstrap import Score
from allmem.evaluation.report.blocks import Block, Heading, Table, Text
from allmem.evaluation.report.blocks import Figure as Plot
from allmem.evaluation.report.html import to_html
from allmem.evaluation.report.markdown import to_markdown
from allmem.evaluation.report.plots import bars, series
from allmem.evaluation.versions import deciding_versions
from allmem.files import atomic_path
from allmem.mixers.ablations import ISOLATES

__all__ = ["figure_names", "make_report", "ranked"]

TITLE = "Arena"
AT = " at "
"""Between a figure's name and the sizes that it was read with."""


def figure_names(standings: Sequence[Standing]) -> list[str]:
    """What was measured, the first figure first."""
    names = [n for one in standings for figures in one.figures.values() for n in figures]
    return list(dict.fromkeys(names))


def ranked(standings: Sequence[Standing], name: str) -> list[Standing]:
    """Teacher and window, then the others, the best first, those that diverged or have no figure
    last."""
    beside = [one for one in standings if one.contender.name in (TEACHER, WINDOW)]

    def place(one: Standing) -> float:
        score = one.score(name)
        if not score.n:
            return math.inf
        return -score.mean if one.seeds(name)[0].higher_is_better else score.mean

    return [*beside, *sorted((one for one in standings if one not in beside), key=place)]


def make_report(arena: ArenaConfig, standings: Sequence[Standing], length: int) -> Path:
    """Write the report into the arena's folder; returns the Markdown file.

    Args:
        length: tokens at which states were counted.

    Raises:
        AllMemError: if nothing was measured yet, or the disk refuses.
    """
    names = figure_names(standings)
    if not names:
        raise AllMemError(f"{arena.output} has no result yet; run the arena first")
    blocks = list(_blocks(arena, ranked(standings, names[0]), names, length))
    folder = Path(arena.output)
    numbers = json.dumps(_numbers(arena, standings, names, length), indent=1, allow_nan=False)
    contents = {
        "report.md": to_markdown(blocks).encode(),
        "report.html": to_html(TITLE, blocks).encode(),
        "report.json": (numbers + "\n").encode(),
    }
    contents |= {block.name: block.png for block in blocks if isinstance(block, Plot)}
    for name, content in contents.items():
        with atomic_path(folder / name) as part:
            part.write_bytes(content)
    return folder / "report.md"


def _blocks(
    arena: ArenaConfig, standings: list[Standing], names: list[str], length: int
) -> Iterator[Block]:
    reference = next(one for one in standings if one.contender.name == arena.reference)
    yield Heading(TITLE, 1)
    for warning in _warnings(arena, standings, length):
        yield Text(warning, warning=True)
    main, *others = [name for name in names if AT not in name]
    found = chances(standings, reference, main)
    yield Heading(_capital(main))
    yield Table(
        ("entrant", _unit(main, standings), "by seed", f"more than {arena.reference}", "size"),
        [
            (
                one.contender.name,
                figure_of(one, main),
                seeds_of(one, main),
                difference_of(one, reference, main, found.get(one.contender.name)),
                limits_of(one, arena.limits),
            )
            for one in standings
        ],
    )
    yield from _plot(main, standings)
    if others:
        yield Heading("Other figures")
        yield _table(others, standings)
    for name in [main, *others]:
        grid = [other for other in names if other.startswith(name + AT)]
        if grid:
            yield Heading(f"{_capital(name)}, read with other sizes")
            yield Text(
                "The same checkpoints, read with other windows, sinks and chunks (window/sinks or "
                "window/sinks/chunk) than they were trained with."
            )
            yield _table(grid, standings, len(name + AT))
    yield Heading("Size and cost")
    yield _costs(standings, length)
    routed = [
        (one.contender.name, str(seed), layer, " ".join(f"{share:.0%}" for share in shares))
        for one in standings
        for seed, layers in one.router_load.items()
        for layer, shares in layers.items()
    ]
    if routed:
        yield Heading("Where routers sent what was written")
        yield Table(("entrant", "seed", "layer", "share of every part"), routed, texts=True)
    ablations = [one for one in standings if one.contender.ablation]
    if ablations:
        yield Heading("What each ablation tells")
        yield Table(
            ("entrant", "changed", "tells about"),
            [
                (one.contender.name, sizes_of(one), ISOLATES[one.contender.ablation or ""])
                for one in ablations
            ],
            texts=True,
        )
    yield Heading("How it was run")
    for line in about_arena(arena, standings, length):
        yield Text(line)


def _capital(name: str) -> str:
    return name[0].upper() + name[1:]


def _table(names: Sequence[str], standings: Sequence[Standing], cut: int = 0) -> Table:
    return Table(
        ("entrant", *(_unit(name, standings)[cut:] for name in names)),
        [(one.contender.name, *(figure_of(one, name) for name in names)) for one in standings],
    )


def _unit(name: str, standings: Sequence[Standing]) -> str:
    """A figure's name with its unit."""
    figure = _any(name, standings)
    return f"{name} ({figure.unit})" if figure.unit else name


def _any(name: str, standings: Sequence[Standing]) -> Figure:
    return next(figure for one in standings for figure in one.seeds(name))


def _costs(standings: Sequence[Standing], length: int) -> Table:
    return Table(
        (
            "entrant",
            "parameters",
            "state beyond the window's",
            "kept elsewhere",
            f"FLOPs a token at {length:,}",
            "tokens/s, training",
            "tokens/s, reading",
            "solved for",
        ),
        [
            (
                one.contender.name,
                f"{one.contender.totals.parameters:,}{share_of(one.contender.parameter_difference)}",
                kilobytes(one.contender.totals.state_bytes)
                + share_of(one.contender.state_difference),
                kilobytes(one.contender.totals.elsewhere) if one.contender.totals.elsewhere else "",
                f"{one.contender.totals.flops / 1e6:.3g} M",
                plain(one.training_pace),
                plain(one.reading_pace),
                ", ".join(f"{k} {v}" for k, v in one.contender.sizes.items()),
            )
            for one in standings
        ],
    )


def _plot(name: str, standings: Sequence[Standing]) -> Iterator[Block]:
    shown = [one for one in standings if one.score(name).n]
    if not shown:
        return
    points: list[tuple[float, Score | None]] = []
    for i, one in enumerate(shown):
        score = one.score(name)
        low, high = shown_range(score, one.seeds(name)[0])
        points.append((float(i), dataclasses.replace(score, low=low, high=high)))
    labels = [one.contender.name for one in shown]
    try:
        png = bars(labels, [series(name, points)], "", _unit(name, standings))
    except AllMemError:
        # Without matplotlib the tables say it all.
        return
    yield Plot("figure.png", f"{name} of every entrant, with 95 % intervals", png)


def _warnings(arena: ArenaConfig, standings: Sequence[Standing], length: int) -> Iterator[str]:
    if len(arena.seeds) < TESTED_SEEDS:
        few = (
            "with one seed intervals are over questions alone, and say nothing of what another "
            "would bring"
            if len(arena.seeds) == 1
            else "intervals are wide"
        )
        yield f"{len(arena.seeds)} of at least three seeds: {few}, and no difference is marked."
    teacher, _, reference = (
        next(one.contender for one in standings if one.contender.name == name)
        for name in (TEACHER, WINDOW, arena.reference)
    )
    if reference.totals.state_bytes > teacher.totals.state_bytes:
        yield (
            f"{reference.name} keeps {kilobytes(reference.totals.state_bytes)} beyond the window, "
            f"more than the rest of a text of {length:,} tokens takes in full attention "
            f"({kilobytes(teacher.totals.state_bytes)}): memories are compared here, nothing is "
            "saved, and a cache of as many bytes holds the whole text."
        )
    missing = [one.contender.name for one in standings if one.missing]
    if missing:
        yield f"Not finished: {', '.join(missing)}. The same command goes on."
    for one in standings:
        outside = one.contender.outside(arena.limits)
        if outside and one.contender.name not in (TEACHER, WINDOW):
            yield (
                f"{one.contender.name} is not matched in {' and '.join(outside)}: a difference may "
                "be that of size."
            )
        for seed, why in one.diverged.items():
            yield f"{one.contender.name} diverged with seed {seed}: {why}"


def _numbers(
    arena: ArenaConfig, standings: Sequence[Standing], names: Sequence[str], length: int
) -> dict[str, Any]:
    """Everything, JSON-able."""
    reference = next(one for one in standings if one.contender.name == arena.reference)
    found = {name: chances(standings, reference, name) for name in names}
    return {
        "kind": "arena",
        "format": 1,
        "arena": arena.to_dict(),
        "length": length,
        "versions": deciding_versions(),
        "entrants": {
            one.contender.name: {
                "mixer": one.contender.mixer,
                "conversion": dataclasses.asdict(one.contender.conversion),
                "solved": one.contender.sizes,
                "totals": dataclasses.asdict(one.contender.totals),
                "parameter_difference": one.contender.parameter_difference,
                "state_difference": one.contender.state_difference,
                "ablation": one.contender.ablation,
                "missing": one.missing,
                "diverged": {str(seed): why for seed, why in one.diverged.items()},
                "training_pace": _number(one.training_pace),
                "reading_pace": _number(one.reading_pace),
                "figures": {
                    name: {
                        "seeds": {
                            str(seed): single(figures[name])
                            for seed, figures in one.figures.items()
                            if name in figures
                        },
                        "mean": _score(one.score(name)),
                        "difference": _score(one.more_than(reference, name)),
                        "p": found[name].get(one.contender.name),
                    }
                    for name in names
                    if one.seeds(name)
                },
            }
            for one in standings
        },
    }


def _score(score: Score) -> dict[str, Any] | None:
    return dataclasses.asdict(score) if score.n else None


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
