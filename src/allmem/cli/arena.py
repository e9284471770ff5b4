"""``allmem arena``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from allmem.cli import terminal
from allmem.cli.options import Verbose
from allmem.cli.terminal import console, count, minutes, progress
from allmem.cli.training import share_cores

if TYPE_CHECKING:
    from allmem.arena import Arena, Outcome
    from allmem.arena.schedule import JobProgress

__all__ = ["command"]


def command(
    arena: Annotated[str, typer.Argument(metavar="ARENA", help="A YAML file.", show_default=False)],
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE...",
            help="In place of the file's own, such as training.steps=20 or output=runs/b.",
            show_default=False,
        ),
    ] = None,
    jobs: Annotated[
        int,
        typer.Option(
            "--jobs",
            min=1,
            metavar="N",
            help="Entrants that are trained side by side, each in a process of its own: on GPUs in "
            "turn, on a CPU with a share of its cores.",
        ),
    ] = 1,
    show: Annotated[
        bool, typer.Option("--show", help="Show who takes part at which sizes, and do nothing.")
    ] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Write the report of what is there, and train nothing.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Compare memories: train all of them from one teacher on the same tokens, at equal sizes.

    Every entrant and seed is a job. Interrupted or killed, the same command goes on where it was;
    jobs that are done are not run again. The report is in the output folder: report.md,
    report.html, report.json.
    """
    terminal.quiet(verbose)
    from allmem.arena import load_arena

    # Before anything heavy is imported, so that an error in the file is told at once.
    config = load_arena(arena, settings or ())
    share_cores()
    with terminal.working(f"matching sizes of {arena}"):
        from allmem.arena import Arena

        made = Arena(config)
    if show:
        _show(made)
        return
    if report:
        _tell(made.report())
        return
    with progress(_describe, lambda now: now.share) as on_progress:
        outcome = made.hold(jobs, on_progress)
    _tell(outcome)


def _show(arena: Arena) -> None:
    """Who takes part, at which sizes."""
    from rich.table import Table

    table = Table()
    for name in ("entrant", "mixer", "solved for"):
        table.add_column(name, overflow="fold")
    for name in ("parameters", "state", "jobs"):
        table.add_column(name, justify="right")
    for one in arena.contenders:
        more = "" if not one.parameter_difference else f" ({one.parameter_difference:+.1%})"
        state = f" ({one.state_difference:+.1%})" if one.sizes else ""
        table.add_row(
            one.name,
            one.mixer,
            ", ".join(f"{name} {value}" for name, value in one.sizes.items()),
            count(one.totals.parameters) + more,
            terminal.size(one.totals.state_bytes) + state,
            str(sum(job.name == one.name for job in arena.jobs)),
        )
    out = console()
    out.print(table)
    out.print(
        f"{count(len(arena.jobs))} jobs; state beyond the window's, of {count(arena.length)} tokens"
    )


def _describe(now: JobProgress) -> str:
    """``12 of 40 jobs  mamba2, seed 0  step 120  KL 0.1320  0:20 left of it``."""
    text = f"{now.done} of {now.total} jobs  {now.label}"
    if now.step is not None:
        left = minutes(now.step.seconds_left)
        text += f"  step {now.step.number}  loss {now.step.loss:.4f}  {left} left of it"
    return text


def _tell(outcome: Outcome) -> None:
    """The main figure of everybody."""
    from rich.table import Table

    from allmem.arena.wording import figure_of, seeds_of

    main = outcome.names[0]
    table = Table()
    table.add_column("entrant", overflow="fold")
    table.add_column(main, justify="right")
    table.add_column("by seed", justify="right")
    for one in outcome.standings:
        value = figure_of(one, main)
        text = f"{value.text} ({value.count})" if value.count else value.text
        table.add_row(one.contender.name, text, seeds_of(one, main))
    console().print(table)
    console().print(str(outcome.report), markup=False, soft_wrap=True)
