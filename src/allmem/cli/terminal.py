"""What commands print around their results: status, progress and numbers.

Results go to stdout, everything else to stderr; colours and moving bars only where stderr is
a terminal.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from allmem.reading import Progress

__all__ = [
    "console",
    "count",
    "error_console",
    "minutes",
    "progress",
    "quiet",
    "reading",
    "size",
    "stream",
    "working",
]

Event = TypeVar("Event")

SECONDS_BETWEEN_LINES = 10.0
"""Between two progress lines where there is no terminal."""


def console() -> Console:
    """For results. Wide where it is not a terminal, so that no line of a pipe is folded."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 120)


def error_console() -> Console:
    """For everything else."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def size(number: int) -> str:
    """Bytes for people: ``23.4 MB`` (decimal units)."""
    value = float(number)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.3g} TB"


def count(number: int) -> str:
    """``12,288``."""
    return f"{number:,}"


def minutes(seconds: float) -> str:
    """``1:20``."""
    whole, rest = divmod(round(seconds), 60)
    return f"{whole}:{rest:02d}"


def quiet(verbose: bool) -> None:
    """Silence the libraries underneath, before they are imported."""
    if verbose:
        return
    os.environ["TQDM_DISABLE"] = "1"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "critical"
    os.environ["HF_HUB_VERBOSITY"] = "critical"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # Where they were imported before (tests, notebooks), the environment comes too late.
    if "transformers" in sys.modules:
        from transformers.utils import logging

        logging.set_verbosity(logging.CRITICAL)
        logging.disable_progress_bar()


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """Say what takes a moment, where somebody watches."""
    shown = error_console()
    if not shown.is_terminal:
        yield
        return
    with shown.status(escape(what)):
        yield


@contextlib.contextmanager
def progress(
    describe: Callable[[Event], str], share: Callable[[Event], float]
) -> Iterator[Callable[[Event], None]]:
    """Report how something goes on: as a bar on a terminal, else as a line now and then and one at
    the end.

    Args:
        describe: an event in a line.
        share: of the whole that is done with it, from 0 to 1.
    """
    shown = error_console()
    if shown.is_terminal:
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        columns: list[Any] = [BarColumn(), TextColumn("{task.description}", markup=False)]
        with Bar(*columns, console=shown) as bar:
            task = bar.add_task("", total=1.0)
            yield lambda now: bar.update(task, completed=share(now), description=describe(now))
        return
    last = time.monotonic()
    latest: Event | None = None

    def report(now: Event) -> None:
        nonlocal last, latest
        latest = now
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            shown.print(describe(now), markup=False)

    yield report
    if latest is not None:
        shown.print(describe(latest), markup=False)


@contextlib.contextmanager
def reading(what: str) -> Iterator[Callable[[Progress], None]]:
    """Report a reading: as a bar on a terminal, else as a line now and then and one at the end.
    What takes a single block is not worth a line."""
    shown = error_console()
    if shown.is_terminal:
        with _bar(what, shown) as report:
            yield report
        return
    last = time.monotonic()
    latest: Progress | None = None
    blocks = 0

    def report_line(progress: Progress) -> None:
        nonlocal last, latest, blocks
        latest = progress
        blocks += 1
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES and progress.tokens < progress.total:
            last = time.monotonic()
            shown.print(_line(what, progress), markup=False)

    yield report_line
    if latest is not None and blocks > 1:
        shown.print(_line(what, latest), markup=False)


def _line(what: str, progress: Progress) -> str:
    done = count(progress.tokens)
    if progress.tokens < progress.total:
        done += f" of {count(progress.total)}"
    return (
        f"{what}: {done} tokens, {progress.rate:,.0f} tokens/s, state {size(progress.state_bytes)}"
    )


@contextlib.contextmanager
def _bar(what: str, shown: Console) -> Iterator[Callable[[Progress], None]]:
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns: list[Any] = [
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(),
    ]
    with Bar(*columns, console=shown) as bar:
        task = bar.add_task(escape(what), total=None, numbers="")

        def report(progress: Progress) -> None:
            numbers = (
                f"{count(progress.tokens)}/{count(progress.total)} tokens  "
                f"{progress.rate:,.0f}/s  state {size(progress.state_bytes)}"
            )
            bar.update(task, completed=progress.tokens, total=progress.total, numbers=numbers)

        yield report


def stream(pieces: Iterator[str]) -> str:
    """Print a text as it comes; returns it."""
    said = []
    for piece in pieces:
        said.append(piece)
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()
    return "".join(said)
