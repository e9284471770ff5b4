"""``allmem chat``."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
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

COMMANDS = (
    "/exit ends, /reset forgets everything, /state shows what is remembered, /help shows this"
)


@grouped
def command(
    model: Model,
    opening: OpeningOptions,
    sampling: SamplingOptions,
    conversion: ConversionOptions,
    system: Annotated[
        str | None,
        typer.Option("--system", metavar="TEXT", help="Instructions before the first turn."),
    ] = None,
    max_new_tokens: AnswerLength = 512,
    thinking: Thinking = False,
    verbose: Verbose = False,
) -> None:
    """Talk to a model in one growing conversation; every turn reads only what is new.

    A line is a turn, typed or piped. /exit ends, /reset forgets everything, /state shows what
    is remembered, /help lists these.
    """
    chosen = conversion.conversion()
    terminal.quiet(verbose)
    with terminal.working(f"loading {model}"):
        from allmem.answering import Conversation
        from allmem.prompts import ChatPrompts

        how = sampling.sampling()
        opened = opening.open(model, chosen)
        talk = Conversation(opened, ChatPrompts(opened.tokenizer, system, thinking), how)
    notes = terminal.error_console()
    if sys.stdin.isatty():
        notes.print(COMMANDS, markup=False)
    for line in _lines():
        word = line.strip()
        if not word:
            continue
        if word == "/exit":
            return
        if word == "/reset":
            talk.reset()
            notes.print("forgotten")
        elif word == "/state":
            tokens, kept = terminal.count(talk.tokens), terminal.size(talk.state_bytes)
            notes.print(f"{tokens} tokens read, state {kept}")
        elif word.startswith("/"):
            notes.print(COMMANDS, markup=False)
        else:
            terminal.stream(talk.say(line, max_new_tokens))


def _lines() -> Iterator[str]:
    """What is typed, with a prompt and line editing, or what is piped, until its end."""
    if not sys.stdin.isatty():
        for line in sys.stdin:
            yield line.rstrip("\n")
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (importing it is what gives `input` its editing)
    while True:
        try:
            yield input("> ")
        except EOFError:
            return
