"""``allmem export``."""

from __future__ import annotations

from typing import Annotated

import typer

from allmem.cli import terminal
from allmem.cli.options import DtypeOption, Verbose, output_option

__all__ = ["command"]

BASE = "Base model"


def command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RUN|ADAPTER",
            help="Folder of a finished run, or an adapter's file.",
            show_default=False,
        ),
    ],
    output: Annotated[str, output_option("Folder to write; new or empty.")],
    merged: Annotated[
        bool,
        typer.Option("--merged", help="Write the whole converted model, with its tokenizer."),
    ] = False,
    half: Annotated[
        bool,
        typer.Option("--half", help="Write the adapter's large matrices in bfloat16."),
    ] = False,
    window: Annotated[
        int | None,
        typer.Option(
            "--window",
            min=1,
            help="Window that it is read with unless a reader chooses another.",
            show_default="that of the training",
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            metavar="MODEL",
            help="Where the base model is: a hub name, a folder or a GGUF file. Its weights are "
            "compared with those that the adapter was trained beside.",
            show_default="what the adapter names",
            rich_help_panel=BASE,
        ),
    ] = None,
    other_base: Annotated[
        bool,
        typer.Option(
            "--other-base",
            help="Export although this base has other weights (a quantised copy, say); the card "
            "says so.",
            rich_help_panel=BASE,
        ),
    ] = False,
    dtype: DtypeOption = None,
    verbose: Verbose = False,
) -> None:
    """Make a folder with a model card for the hub, from a run or an adapter.

    The folder holds the adapter alone, or with --merged the whole model, which loads with
    transformers once allmem is imported. The card says what the files of the run and the base
    say: base, layout, data, budget, results, licence. No path of this machine gets into it.
    """
    terminal.quiet(verbose)
    with terminal.working(f"exporting {source}"):
        from allmem.export import export

        folder = export(
            source,
            output,
            merged=merged,
            half=half,
            window=window,
            base=base,
            other_base=other_base,
            dtype=None if dtype is None else str(dtype),
        )
    shown = terminal.console()
    for file in sorted(folder.iterdir()):
        shown.print(f"{file}  {terminal.size(file.stat().st_size)}", markup=False, soft_wrap=True)
