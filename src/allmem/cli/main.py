"""``allmem``: which commands there are, and how any of them fails.

A command's module is imported when the command is used, so that help and usage errors come at once:
each holds a function ``command`` that typer understands.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperGroup

from allmem._version import __version__
from allmem.errors import AllMemError

__all__ = ["COMMANDS", "Listed", "app", "is_available", "load_command", "main", "paragraphs"]

PACKAGE = Path(__file__).parents[1]
BAD_INPUT, INTERRUPTED, BROKEN_PIPE = 2, 130, 141
"""Exit codes; the last two are what a shell reports for a process that SIGINT or SIGPIPE ended."""


class Listed(NamedTuple):
    """A command as ``allmem --help`` shows it."""

    name: str
    module: str
    help: str


COMMANDS = [
    Listed(
        "demo", "allmem.cli.demo", "Convert a small model, let it read a book, ask it about it."
    ),
    Listed("convert", "allmem.cli.convert", "Give a model a memory and save it."),
    Listed("info", "allmem.cli.info", "Show a model's layers, parameters and state size."),
    Listed("cost", "allmem.cli.cost", "Count what reading costs, against full attention."),
    Listed("data", "allmem.cli.data", "Make training data, or look at what was made."),
    Listed("train", "allmem.cli.train", "Distil the memory on plain text, in one command."),
    Listed("distill", "allmem.cli.distill", "Distil the memory by a recipe."),
    Listed("export", "allmem.cli.export", "Make a folder for the hub, with a model card."),
    Listed("collect", "allmem.cli.collect", "Collect a student's responses to distil from."),
    Listed("evaluate", "allmem.cli.evaluate", "Evaluate a model on benchmarks and probes."),
    Listed("report", "allmem.cli.report", "Make a report of evaluation runs."),
    Listed("arena", "allmem.cli.arena", "Compare memories at equal sizes, from one teacher."),
    Listed("place", "allmem.cli.place", "Find the layers that need full attention or a memory."),
    Listed("ask", "allmem.cli.ask", "Read a document once and answer questions about it."),
    Listed("generate", "allmem.cli.generate", "Continue a text."),
    Listed("chat", "allmem.cli.chat", "Talk to a model in one growing conversation."),
    Listed("serve", "allmem.cli.serve", "Serve a model by OpenAI's protocol."),
]

CONTEXT = {"help_option_names": ["-h", "--help"]}


class LazyGroup(TyperGroup):
    """Lists commands by their one-line helps and imports the one that is used."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, listed, rest = super().resolve_command(ctx, args)
        return name, None if listed is None else load_command(str(listed.name)), rest

    def invoke(self, ctx: Any) -> Any:
        with _one_line_errors():
            return super().invoke(ctx)


def is_available(listed: Listed) -> bool:
    """Whether this installation has a command's module."""
    return find_spec(listed.module) is not None


def load_command(name: str) -> Any:
    """Import a command's module and make its parser.

    Raises:
        AllMemError: if this installation lacks the module.
    """
    listed = next(command for command in COMMANDS if command.name == name)
    if not is_available(listed):
        raise AllMemError(f"this version of allmem has no command {name!r} yet")
    module = import_module(listed.module)
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    text = paragraphs(module.command.__doc__ or listed.help)
    single.command(name, help=text, context_settings=CONTEXT)(module.command)
    return typer.main.get_command(single)


def paragraphs(text: str) -> str:
    """A docstring with one line to a paragraph, for the terminal to fold."""
    parts = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(part.replace("\n", " ") for part in parts)


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    """Bad input, warnings, Ctrl-C and a closed pipe, each told in one line or none."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Any, category: Any, filename: str, *rest: Any, **more: Any) -> None:
            # Warnings of other libraries are for developers.
            if Path(filename).is_relative_to(PACKAGE) and issubclass(category, UserWarning):
                _say(f"warning: {message}")
            elif sys.warnoptions:
                usual(message, category, filename, *rest, **more)

        warnings.showwarning = show
        try:
            yield
            sys.stdout.flush()
        except AllMemError as error:
            _say(f"error: {error}")
            raise typer.Exit(BAD_INPUT) from None
        except KeyboardInterrupt:
            _say("\ninterrupted")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            # Python would complain once more when it flushes at exit.
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(BROKEN_PIPE) from None
        except Exception as error:
            if hasattr(error, "exit_code"):
                # Typer's own: usage errors, exits.
                raise
            _say(traceback.format_exc().rstrip())
            _say(
                f"this is a defect of allmem {__version__}, not of your input; please report it "
                "with the lines above and the command"
            )
            raise typer.Exit(1) from None


def _say(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        typer.echo(line, err=True)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"allmem {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=LazyGroup,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings=CONTEXT,
)


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Give a pretrained language model a memory of constant size."""


def _never() -> None:
    """Stands for a command in the list; ``LazyGroup`` runs the real one."""


for _listed in COMMANDS:
    app.command(_listed.name, help=_listed.help, context_settings=CONTEXT)(_never)


def main() -> None:
    """The entry point."""
    try:
        app(prog_name="allmem")
    except KeyboardInterrupt:
        # Outside of a command: while Python was still importing.
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
