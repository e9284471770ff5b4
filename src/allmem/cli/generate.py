"""``allmem generate``."""

from __future__ import annotations

from typing import Annotated

import typer

from allmem.cli import terminal
from allmem.cli.options import (
    AnswerLength,
    ConversionOptions,
    Model,
    OpeningOptions,
    Verbose,
    grouped,
)
from allmem.cli.sampling import SamplingOptions

__all__ = ["command"]


@grouped
def command(
    model: Model,
    opening: OpeningOptions,
    sampling: SamplingOptions,
    conversion: ConversionOptions,
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="[PROMPT]", help="Text to continue; without it, stdin.", show_default=False
        ),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(
            "--file", "-f", metavar="FILE", help="Read the prompt from a file; '-' for stdin."
        ),
    ] = None,
    max_new_tokens: AnswerLength = 256,
    verbose: Verbose = False,
) -> None:
    """Continue a text as it stands, without a chat template. Prints the new text only."""
    chosen = conversion.conversion()
    terminal.quiet(verbose)
    from allmem.documents import choose_prompt

    text = choose_prompt(prompt, file)
    with terminal.working(f"loading {model}"):
        from allmem.answering import continue_text

        how = sampling.sampling()
        opened = opening.open(model, chosen)
    with terminal.reading("reading") as report:
        pieces = continue_text(opened, text, max_new_tokens, how, report)
    terminal.stream(pieces)
