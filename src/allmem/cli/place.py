"""``allmem place``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from allmem.cli import terminal
from allmem.cli.options import DtypeOption, Model, Verbose
from allmem.cli.terminal import count, progress
from allmem.cli.training import share_cores
from allmem.errors import AllMemError

if TYPE_CHECKING:
    from rich.table import Table

    from allmem.placing import Damage, Placement

__all__ = ["command"]


def command(
    model: Model,
    keep: Annotated[
        int,
        typer.Option("--keep", "-k", min=0, metavar="K", help="Layers that keep full attention."),
    ],
    memories: Annotated[
        int | None,
        typer.Option(
            "--memories",
            min=0,
            metavar="M",
            help="Layers to propose for a memory.",
            show_default="as many as --keep, at least 1",
        ),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            "--text",
            metavar="FILE",
            help="Plain text to read, of which every token counts; repeatable.",
            show_default="a novel that ships with allmem",
        ),
    ] = None,
    facts: Annotated[
        bool,
        typer.Option(
            "--facts",
            help="Read lists of facts that are asked for again, of which the answers count: which "
            "layers retrieve.",
        ),
    ] = False,
    window: Annotated[
        int | None,
        typer.Option(
            "--window",
            "-W",
            metavar="N",
            help="Tokens that attention sees.",
            show_default="as allmem convert",
        ),
    ] = None,
    sinks: Annotated[
        int | None,
        typer.Option("--sinks", "-S", metavar="N", help="First tokens that it always sees."),
    ] = None,
    mixer: Annotated[
        str,
        typer.Option(
            "--mixer",
            metavar="NAME",
            help="What a layer is converted to: window, or a KV policy such as ladder.",
        ),
    ] = "window",
    length: Annotated[
        int | None,
        typer.Option(
            "--length", min=2, metavar="N", help="Tokens of a row.", show_default="twice the window"
        ),
    ] = None,
    tokens: Annotated[
        int, typer.Option("--tokens", min=1, metavar="N", help="Tokens to read, about.")
    ] = 4096,
    table: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write every number as JSON.")
    ] = None,
    dtype: DtypeOption = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--device",
            metavar="NAME",
            help="cpu, cuda, cuda:1, ...",
            show_default="the GPU, if there is one",
        ),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Find the layers that need full attention, and those where a memory could do most.

    Every layer is converted alone, with all others full, and ranked by its damage: the KL from the
    full model beyond the window. The K worst are proposed to keep full; of the others those to have
    a memory whose full attention takes away most of the damage that is left. Nothing is trained,
    and the same command gives the same numbers. Beside a proposal stands how often it is the same
    when stretches of the text are drawn anew.
    """
    terminal.quiet(verbose)
    share_cores()
    if text and facts:
        raise AllMemError("--text and --facts: name one of them")
    if facts and length is not None:
        raise AllMemError(
            f"--length {length}: rows of facts are as long as the window asks for; leave it "
            "out, or read --text"
        )
    if table is not None and not table.parent.is_dir():
        raise AllMemError(f"--json {table}: there is no folder {table.parent}")
    with terminal.working(f"loading {model}"):
        from allmem.placing import fact_rows, open_converted, pattern_of, place, text_rows

        precision = None if dtype is None else str(dtype)
        opened = open_converted(model, mixer, window, sinks, dtype=precision, device=device)
        own = opened.model.config.window
        if facts:
            rows = fact_rows(opened.tokenizer, own, tokens)
        else:
            rows = text_rows(opened.tokenizer, text or [], own, length, tokens)
    with progress(_describe, lambda now: now[0] / now[1]) as report:
        found = place(
            opened.model, rows, keep, memories, lambda done, of, what: report((done, of, what))
        )
    layers = opened.model.config.layer_names
    pattern = pattern_of(len(layers), found.memories)
    out = terminal.console()
    out.print(
        f"{model}: window {count(own)}, sinks {count(opened.model.config.sinks)}; "
        f"{count(found.positions)} positions beyond the window, "
        f"{len(found.alone)} layers",
        markup=False,
    )
    out.print(_damages(found, facts))
    out.print("\nMost damage alone: keep full", style="bold")
    out.print(_alone(found))
    out.print("\nMost to win: give a memory", style="bold")
    out.print(_restored(found))
    kept = ",".join(map(str, found.keep))
    sinks = opened.model.config.sinks
    options = f"--window {own} --sinks {sinks} --mixers '{pattern}'"
    options += f" --keep-full {kept}" if kept else ""
    out.print(f"\nallmem convert {model} OUTPUT {options}", markup=False, soft_wrap=True)
    if table is not None:
        from allmem.files import atomic_path

        sizes = {"window": own, "sinks": opened.model.config.sinks, "mixer": mixer}
        values = {"model": model, **sizes, "facts": facts, **dataclasses.asdict(found)}
        with atomic_path(table) as part:
            part.write_text(json.dumps({**values, "mixers": pattern}, indent=1) + "\n")


def _describe(now: tuple[int, int, str]) -> str:
    return f"reading {now[0]} of {now[1]}  {now[2]}"


def _damages(found: Placement, facts: bool) -> Table:
    right = "digits right" if facts else "likeliest token right"
    table = _table("", "KL", "95 %", "loss", right)
    kept = f"layers {', '.join(map(str, found.keep))} full" if found.keep else "none kept full"
    for name, damage in (
        ("full attention", found.full),
        ("every layer converted", found.converted),
        (kept, found.kept),
    ):
        table.add_row(name, *_numbers(damage))
    return table


def _alone(found: Placement) -> Table:
    table = _table("layer", "KL alone", "95 %", "loss", "right", "proposal")
    for layer, damage in found.alone.items():
        chosen = f"keep full ({found.sure[layer]:.0%})" if layer in found.keep else ""
        table.add_row(str(layer), *_numbers(damage), chosen)
    return table


def _restored(found: Placement) -> Table:
    table = _table(
        "layer", "KL left with it full", "95 %", "loss", "right", "takes away", "proposal"
    )
    for layer, damage in found.restored.items():
        share = 1 - damage.kl / max(found.kept.kl, 1e-12)
        chosen = f"memory ({found.sure[layer]:.0%})" if layer in found.memories else ""
        table.add_row(str(layer), *_numbers(damage), f"{share:.1%}", chosen)
    return table


def _numbers(damage: Damage) -> tuple[str, str, str, str]:
    kl, low, high = (f"{max(value, 0):.4f}" for value in (damage.kl, damage.low, damage.high))
    return kl, f"{low} to {high}", f"{damage.loss:.4f}", f"{damage.right:.1%}"


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="italic")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i > 0 else "left", no_wrap=True)
    return table
