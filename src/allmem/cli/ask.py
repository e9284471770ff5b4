"""``allmem ask``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from allmem.cli import terminal
from allmem.cli.options import (
    AnswerLength,
    ConversionOptions,
    Model,
    OpeningOptions,
    Thinking,
    Verbose,
    grouped,
)
from allmem.cli.sampling import SamplingOptions

__all__ = ["command"]


@grouped
def command(
    model: Model,
    questions: Annotated[
        list[str], typer.Argument(metavar="QUESTION...", help="One or more.", show_default=False)
    ],
    document: Annotated[
        str,
        typer.Option(
            "--document",
            "-d",
            metavar="FILE",
            help="Text in UTF-8; '-' for stdin.",
            show_default=False,
        ),
    ],
    opening: OpeningOptions,
    sampling: SamplingOptions,
    conversion: ConversionOptions,
    max_new_tokens: AnswerLength = 256,
    thinking: Thinking = False,
    verbose: Verbose = False,
) -> None:
    """Read a document once and answer questions about it.

    Every question is asked of the same memory of the document; no answer sees another. With
    a converted model, or an adapter, the options window, sinks and chunk say how to read.
    """
    chosen = conversion.conversion()
    terminal.quiet(verbose)
    from allmem.documents import read_document
    from allmem.prompts import DocumentPrompt, check_question

    for question in questions:
        check_question(question)
    text = read_document(document)
    with terminal.working(f"loading {model}"):
        from allmem.answering import Reader

        how = sampling.sampling()
        opened = opening.open(model, chosen)
        reader = Reader(opened, DocumentPrompt(opened.tokenizer, thinking))
    with terminal.reading("reading") as report:
        reader.read(text, report)
    for i, question in enumerate(questions):
        if len(questions) > 1:
            sys.stdout.write(f"{'' if i == 0 else chr(10)}> {question}\n")
        last = i == len(questions) - 1
        terminal.stream(reader.answer(question, max_new_tokens, how, last=last))
