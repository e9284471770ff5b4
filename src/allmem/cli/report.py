"""``allmem report``."""

from __future__ import annotations

from typing import Annotated

import typer

from allmem.cli import terminal
from allmem.cli.options import Verbose, output_option
from allmem.evaluation.run_file import read_run_file

__all__ = ["command"]


def command(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Folders of `allmem evaluate`; several stand side by side.",
            show_default=False,
        ),
    ],
    output: Annotated[
        str | None, output_option("Folder to write.", default="report in the first run")
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Make a report of one or several evaluation runs: Markdown, HTML, plots, all numbers.

    The models of all runs stand side by side, with their differences to the first one and the
    paper's numbers where the task is the same. A run that is not finished is reported as far as it
    has come. A file cost.json of `allmem cost --json` in a run's folder is drawn too.
    """
    terminal.quiet(verbose)
    for run in runs:
        read_run_file(run)
    with terminal.working("making the report"):
        from allmem.evaluation.report import make_report

        made = make_report(runs, output)
    told = terminal.error_console()
    for warning in made.warnings:
        told.print(f"note: {warning}", markup=False)
    out = terminal.console()
    tasks = "1 task" if made.tasks == 1 else f"{terminal.count(made.tasks)} tasks"
    out.print(f"{'; '.join(made.models)}: {tasks}", markup=False, soft_wrap=True)
    for name in ("report.html", "report.md", "report.json"):
        out.print(str(made.folder / name), markup=False, soft_wrap=True)
