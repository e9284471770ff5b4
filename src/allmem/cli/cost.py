"""``allmem cost``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from allmem.cli import terminal
from allmem.cli.options import ConversionOptions, DtypeOption, Model, Verbose, grouped

if TYPE_CHECKING:
    from allmem.cost import Comparison

__all__ = ["command"]

LAYERS = "attention and memory layers only (what the paper's figure compares)"
WHOLE = "whole model, with MLP and head"


@grouped
def command(
    model: Model,
    conversion: ConversionOptions,
    lengths: Annotated[
        str,
        typer.Option(
            "--lengths",
            metavar="LIST",
            help="Tokens: 4k,128k; 4k,...,1M doubles from one to the other.",
        ),
    ] = "4k,...,1M",
    parts: Annotated[
        bool, typer.Option("--parts", help="Split the longest length by part of the model.")
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw FLOPs and cache against length (PNG)."),
    ] = None,
    table: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write every number as JSON.")
    ] = None,
    dtype: DtypeOption = None,
    verbose: Verbose = False,
) -> None:
    """Count what reading costs: FLOPs and cache of full attention, window with sinks, and AllMem.

    By formula, for any length; weights are not loaded. For a model that is not converted: what
    `allmem convert` would make of it with the same options. The shapes qwen3-0.6b and qwen3-1.7b,
    the paper's models, are known without a network.
    """
    chosen = conversion.conversion()
    terminal.quiet(verbose)
    from allmem.cost.lengths import length_name, parse_lengths

    numbers = parse_lengths(lengths)
    with terminal.working(f"counting {model}"):
        from allmem.cost.comparing import COUNTED, NOT_COUNTED, compare
        from allmem.cost.shapes import outline_shape

        found = outline_shape(model, chosen, None if dtype is None else str(dtype))
        comparison = compare(found.model, numbers, found.dtype)
    config = found.model.config
    chunk = "none" if config.chunk is None else terminal.count(config.chunk)
    sizes = f"window {config.window:,}, sinks {config.sinks:,}, chunk {chunk}"
    if plot is not None:
        from allmem.cost.figure import save_figure

        save_figure(plot, comparison, f"{model}: {sizes}")
    if table is not None:
        from allmem.files import atomic_path

        with atomic_path(table) as part:
            part.write_text(json.dumps({"model": model, **comparison.to_dict()}, indent=1) + "\n")
    names = [length_name(n) for n in numbers]
    out = terminal.console()
    state = "converted" if found.converted else "as these options would convert it"
    out.print(f"{model}, {state}: {sizes}", markup=False)
    out.print(f"Counted: {COUNTED}.\nNot counted: {NOT_COUNTED}.\n", markup=False)
    for title, whole in ((LAYERS, False), (WHOLE, True)):
        out.print(title, markup=False, style="bold")
        for what, count in (
            ("FLOPs a token, prefill average", comparison.prefill),
            ("FLOPs of the next token", comparison.decode),
        ):
            out.print(_table(comparison, names, what, _flops, _of(count, whole)))
            out.print()
    out.print(f"kept of a text ({comparison.sizes['dtype']}, fast weights fp32)", style="bold")
    out.print(_table(comparison, names, "cache", _bytes, comparison.cache))
    if parts:
        out.print(f"\nFLOPs by part at {names[-1]}, all layers", style="bold")
        out.print(_parts(comparison, "prefill, a token"))
        out.print()
        out.print(_parts(comparison, "next token"))


def _of(count: Callable[[str, int, bool], float], whole: bool) -> Callable[[str, int], float]:
    return lambda reading, i: count(reading, i, whole)


def _table(
    comparison: Comparison,
    names: list[str],
    what: str,
    shown: Callable[[float], str],
    count: Callable[[str, int], float],
) -> Table:
    table = _columns(what, *comparison.costs, "AllMem / full")
    for i, name in enumerate(names):
        values = [count(reading, i) for reading in comparison.costs]
        table.add_row(name, *map(shown, values), f"{values[-1] / values[0]:.1%}")
    return table


def _parts(comparison: Comparison, what: str) -> Table:
    table = _columns(what, *comparison.costs, "of AllMem")
    average = what.startswith("prefill")
    last = {name: costs[-1] for name, costs in comparison.costs.items()}
    split = {name: cost.prefill if average else cost.decode for name, cost in last.items()}
    over = comparison.lengths[-1] if average else 1
    total = sum(split["AllMem"].values())
    for part in dict.fromkeys(part for flops in split.values() for part in flops):
        values = [flops.get(part, 0) for flops in split.values()]
        shown = [_flops(value / over) if value else "-" for value in values]
        table.add_row(part, *shown, f"{values[-1] / total:.1%}")
    return table


def _columns(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="italic")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    return table


def _flops(number: float) -> str:
    """``62.4 M``."""
    for unit in ("", " k", " M", " G"):
        if number < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:,.3g} T"


def _bytes(number: float) -> str:
    return terminal.size(int(number))
