"""``allmem convert``."""

from __future__ import annotations

from typing import Annotated

import typer

from allmem.cli import terminal
from allmem.cli.options import ConversionOptions, Model, OpeningOptions, Verbose, grouped

__all__ = ["command"]


@grouped
def command(
    model: Model,
    output: Annotated[
        str, typer.Argument(metavar="OUTPUT", help="Folder to write.", show_default=False)
    ],
    conversion: ConversionOptions,
    opening: OpeningOptions,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the model that OUTPUT holds.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Give a model a memory and save it, with its tokenizer, as a folder.

    The memory of a converted model is untrained and adds nothing yet: `allmem train` teaches it,
    or --adapter brings one that was trained. The folder loads with transformers once allmem is
    imported.
    """
    chosen = conversion.conversion()
    terminal.quiet(verbose)
    with terminal.working(f"converting {model}"):
        from allmem.folder import convert_to_folder

        folder, config = convert_to_folder(
            model, output, chosen, force=force, **opening.arguments()
        )
    terminal.console().print(
        f"{folder}: window {config.window}, sinks {config.sinks}, chunk {config.chunk}"
    )
