"""``allmem data``."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from allmem.cli import terminal
from allmem.cli.options import Verbose
from allmem.errors import AllMemError

__all__ = ["command"]

BUILD = "For build"
INSPECT = "For inspect"


class Action(StrEnum):
    """What to do."""

    build = "build"
    inspect = "inspect"


def command(
    action: Annotated[
        Action,
        typer.Argument(help="build: make a data folder; inspect: look into one."),
    ],
    place: Annotated[
        str | None,
        typer.Argument(
            metavar="CONFIG|FOLDER",
            help="For build: a YAML file, or nothing if options say it all. For inspect: a data "
            "folder.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Data folder to make, or to go on with.",
            rich_help_panel=BUILD,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="Whose tokenizer and chat template, in place of the file's.",
            rich_help_panel=BUILD,
        ),
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(
            "--source",
            metavar="FILE",
            help="Rows to read, in place of the file's sources; repeatable.",
            rich_help_panel=BUILD,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", metavar="N", help="In place of the file's.", rich_help_panel=BUILD),
    ] = None,
    skip_bad_rows: Annotated[
        bool,
        typer.Option(
            "--skip-bad-rows",
            help="Count unreadable rows and go on.",
            rich_help_panel=BUILD,
        ),
    ] = False,
    sample: Annotated[
        int,
        typer.Option(
            "--sample",
            metavar="N",
            min=0,
            help="Which sample to show, counted from 0.",
            rich_help_panel=INSPECT,
        ),
    ] = 0,
    whole: Annotated[
        bool,
        typer.Option("--whole", help="Show it in full, however long.", rich_help_panel=INSPECT),
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Make training data from chats, data sets and books, or look at what was made.

    `allmem data build recipe.yaml -o DIR` cleans, filters, tokenises, masks and packs every
    sample, and says what was left out and why. Interrupted, the same command goes on where it was.

    `allmem data inspect DIR` shows counts, lengths and a sample, with the tokens that are learned
    marked.
    """
    terminal.quiet(verbose)
    if action is Action.build:
        _build(place, output, model, source, seed, skip_bad_rows)
    elif place is None:
        raise AllMemError("name the data folder to inspect")
    else:
        _inspect(place, sample, whole)


def _build(
    place: str | None,
    output: str | None,
    model: str | None,
    source: list[str] | None,
    seed: int | None,
    skip_bad_rows: bool,
) -> None:
    from allmem.cli.data_report import build_report, class_table, counts_table
    from allmem.data.build import build_data
    from allmem.data.config import config_from

    if output is None:
        raise AllMemError("name the data folder to make: --output DIR")
    config = config_from(
        place,
        model=model,
        sources=[{"path": file} for file in source] if source else None,
        seed=seed,
        bad_rows="skip" if skip_bad_rows else None,
    )
    with build_report() as on_progress:
        index = build_data(config, output, on_progress)
    shown = terminal.console()
    shown.print(counts_table(index))
    shown.print()
    shown.print(class_table(index))


def _inspect(place: str, sample: int, whole: bool) -> None:
    from pathlib import Path

    from allmem.cli.data_report import class_table, counts_table, histogram_table, rendered
    from allmem.data.inspection import sample_notes, sample_stretches
    from allmem.data.pipeline import load_chat_tokenizer
    from allmem.data.shards import read_index

    folder = Path(place)
    index = read_index(folder)
    shown = terminal.console()
    if not index.done:
        shown.print("This build is not complete; run the same `allmem data build` to go on.\n")
    for table in (counts_table(index), class_table(index), histogram_table(index)):
        shown.print(table)
        shown.print()
    if not index.shards:
        shown.print("No sample was kept.")
        return
    with terminal.working("loading the tokenizer"):
        tokenizer = load_chat_tokenizer(index.config["model"], index.config["template"])
    notes = sample_notes(folder, index, sample)
    cut = ", cut" if notes["cut"] else ""
    shown.print(f"Sample {sample}: {notes['source']} {notes['id']}{cut}\n", markup=False)
    text = rendered(sample_stretches(folder, index, sample, tokenizer, whole))
    shown.print(text, soft_wrap=True)
