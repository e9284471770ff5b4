"""``allmem data``."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from allmem.cli import terminal
from allmem.cli.options import Dtype, Verbose, output_option
from allmem.errors import AllMemError

if TYPE_CHECKING:
    from allmem.data.teaching import Taught

__all__ = ["command"]

MAKE = "For build and teach"
BUILD = "For build"
TEACH = "For teach"
INSPECT = "For inspect"


class Action(StrEnum):
    """What to do."""

    build = "build"
    teach = "teach"
    inspect = "inspect"


def command(
    action: Annotated[
        Action,
        typer.Argument(
            help="build: make a data folder; teach: store a teacher's answers with one; inspect: "
            "look into one."
        ),
    ],
    place: Annotated[
        str | None,
        typer.Argument(
            metavar="CONFIG|FOLDER",
            help="For build: a YAML file, or nothing if options say it all. For teach and "
            "inspect: a data folder.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        str | None, output_option("Data folder to make, or to go on with.", rich_help_panel=MAKE)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="For build: whose tokenizer and chat template, in place of the file's. For "
            "teach: the teacher.",
            rich_help_panel=MAKE,
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
    top: Annotated[
        int,
        typer.Option(
            "--top",
            metavar="N",
            min=1,
            help="Words to store of each prediction, the likeliest: six bytes each.",
            rich_help_panel=TEACH,
        ),
    ] = 64,
    dtype: Annotated[
        Dtype | None,
        typer.Option(
            "--dtype",
            help="Precision of the teacher's weights.",
            show_default="as saved",
            rich_help_panel=TEACH,
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--device",
            metavar="NAME",
            help="cpu, cuda, cuda:1, ...",
            show_default="the GPU, if there is one",
            rich_help_panel=TEACH,
        ),
    ] = None,
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

    `allmem data teach FOLDER --model TEACHER -o DIR` copies a data folder and stores with it what
    a teacher says of every token that is learned, so that distillation needs no teacher in memory.
    Interrupted, the same command goes on.

    `allmem data inspect DIR` shows counts, lengths and a sample, with the tokens that are learned
    marked.
    """
    terminal.quiet(verbose)
    if action is Action.build:
        _build(place, output, model, source, seed, skip_bad_rows)
    elif place is None:
        raise AllMemError(f"name the data folder to {action.value}")
    elif action is Action.teach:
        _teach(place, output, model, top, None if dtype is None else str(dtype), device)
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
    # Only now, since they import much that an error in the file need not wait for.
    from allmem.cli.data_report import build_report, class_table, counts_table
    from allmem.data.build import build_data

    with build_report() as on_progress:
        index = build_data(config, output, on_progress)
    shown = terminal.console()
    shown.print(counts_table(index))
    shown.print()
    shown.print(class_table(index))


def _teach(
    place: str,
    output: str | None,
    model: str | None,
    top: int,
    dtype: str | None,
    device: str | None,
) -> None:
    from allmem.data.shards import read_index
    from allmem.data.teaching import stored_bytes, teach_data

    if output is None or model is None:
        raise AllMemError("name the teacher and the data folder to make: --model MODEL -o DIR")
    index = read_index(place)
    tokens = terminal.count(sum(shard["response_tokens"] for shard in index.shards))
    terminal.error_console().print(
        f"{tokens} learned tokens, {top} words each: about "
        f"{terminal.size(stored_bytes(index, top))} in {output}",
        markup=False,
    )
    with terminal.progress(_taught_so_far, lambda now: now.tokens / now.all_tokens) as on_progress:
        taught = teach_data(
            place, model, output, top=top, dtype=dtype, device=device, on_progress=on_progress
        )
    files = [part for shard in taught.shards for part in shard["answers"]]
    answered = terminal.count(sum(part["tokens"] for part in files))
    stored = sum(file["bytes"] for file in (*taught.shards, *files))
    terminal.console().print(
        f"{output}: {answered} tokens answered, {terminal.size(stored)}",
        markup=False,
        soft_wrap=True,
    )


def _taught_so_far(now: Taught) -> str:
    return (
        f"teaching: {terminal.count(now.rows)} of {terminal.count(now.all_rows)} rows, "
        f"{terminal.count(now.tokens)} of {terminal.count(now.all_tokens)} tokens, "
        f"{now.tokens_per_second:,.0f} tokens/s, {terminal.minutes(now.seconds_left)} left"
    )


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
        command = "build" if index.teacher is None else "teach"
        shown.print(f"This is not complete; run the same `allmem data {command}` to go on.\n")
    if index.teacher is not None:
        answered = sum(part["tokens"] for shard in index.shards for part in shard["answers"])
        shown.print(
            f"With answers of {index.teacher['name']}: {index.teacher['top']} words for "
            f"{terminal.count(answered)} tokens.\n",
            markup=False,
        )
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
