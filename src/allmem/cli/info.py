"""``allmem info``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from allmem.cli import terminal
from allmem.cli.options import ConversionOptions, DtypeOption, Model, Verbose, grouped

if TYPE_CHECKING:
    from allmem.cost import Overview

__all__ = ["command"]

LENGTHS = {"1k": 2**10, "4k": 2**12, "8k": 2**13, "32k": 2**15, "128k": 2**17, "1M": 2**20}


@grouped
def command(
    model: Model,
    conversion: ConversionOptions,
    dtype: DtypeOption = None,
    verbose: Verbose = False,
) -> None:
    """Show a model's layers and parameters, and the size of what it keeps of a text.

    For a model that is not converted: what `allmem convert` would make of it with the same options.
    Weights are not loaded.
    """
    chosen = conversion.conversion()
    terminal.quiet(verbose)
    with terminal.working(f"looking at {model}"):
        from allmem.cost import Overview
        from allmem.opening import outline

        found = outline(model, chosen, None if dtype is None else str(dtype))
    overview = Overview(found.model, found.dtype)
    config = found.model.config
    out = terminal.console()
    kind = getattr(config.text_config, "model_type", "language")
    if found.converted:
        out.print(f"{model}: converted, from a {kind} model ({config.base_source})", markup=False)
    else:
        out.print(
            f"{model}: a {kind} model, not converted; with these options it would be:", markup=False
        )
    chunk = "none" if config.chunk is None else terminal.count(config.chunk)
    window, sinks = terminal.count(config.window), terminal.count(config.sinks)
    out.print(f"window {window}, sinks {sinks}, chunk {chunk}\n")
    out.print(_layers(overview))
    out.print()
    out.print(_parameters(overview))
    out.print()
    out.print(_states(overview))
    even = overview.break_even()
    if even is None:
        out.print("Every layer keeps all that it read: nothing is saved at any length.")
    else:
        out.print(f"Below {terminal.count(even)} tokens full attention's cache is the smaller one.")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    return table


def _layers(overview: Overview) -> Table:
    table = _table("layers", "mixer", "window", "sinks", "added parameters", "state")
    for group in overview.layers():
        numbers = f"{group.first}" if group.first == group.last else f"{group.first}-{group.last}"
        each = " each" if group.first != group.last else ""
        state = "grows" if group.state_bytes is None else terminal.size(group.state_bytes) + each
        table.add_row(
            numbers,
            group.mixer,
            "all" if group.window is None else terminal.count(group.window),
            terminal.count(group.sinks),
            terminal.count(group.added) + each,
            state,
        )
    return table


def _parameters(overview: Overview) -> Table:
    base = overview.base_parameters()
    table = _table("parameters", "number", "of the base")
    table.add_row("base", terminal.count(base), "")
    table.add_row("added", *_share(overview.added_parameters(), base))
    for part, number in overview.added_by_part().items():
        table.add_row(f"  {part}", *_share(number, base))
    return table


def _share(number: int, base: int) -> tuple[str, str]:
    return terminal.count(number), f"{number / base:.2%}"


def _states(overview: Overview) -> Table:
    name = str(overview.dtype).removeprefix("torch.")
    table = _table(f"kept of a text ({name})", "state", "full attention's cache", "ratio")
    for label, tokens in LENGTHS.items():
        state, full = overview.state_bytes(tokens), overview.full_bytes(tokens)
        ratio = f"{state / full:.3g}"
        table.add_row(f"{label} tokens", terminal.size(state), terminal.size(full), ratio)
    return table
