"""How a build of data looks on a terminal and in a pipe."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from allmem.cli.terminal import SECONDS_BETWEEN_LINES, count, error_console

if TYPE_CHECKING:
    from allmem.data.build import Report
    from allmem.data.inspection import Stretch
    from allmem.data.shards import Index

__all__ = ["build_report", "class_table", "counts_table", "histogram_table", "rendered"]

BAR = 40
"""Width of the longest bar of a histogram."""


def _line(report: Report) -> str:
    return (
        f"{report.source}: {count(report.rows)} rows read, {count(report.kept)} samples kept, "
        f"{count(report.tokens)} tokens"
    )


@contextlib.contextmanager
def build_report() -> Iterator[Callable[[Report], None]]:
    """Report a build: as a spinner on a terminal, else as a line now and then."""
    shown = error_console()
    last = time.monotonic()
    with contextlib.ExitStack() as stack:
        status = stack.enter_context(shown.status("starting")) if shown.is_terminal else None

        def report(now: Report) -> None:
            nonlocal last
            wait = 0.1 if status is not None else SECONDS_BETWEEN_LINES
            if time.monotonic() - last < wait:
                return
            last = time.monotonic()
            if status is not None:
                from rich.markup import escape

                status.update(escape(_line(now)))
            else:
                shown.print(_line(now), markup=False)

        yield report


def _table(*columns: str) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    return table


def counts_table(index: Index) -> Any:
    """What became of the rows of every source."""
    from rich.markup import escape

    table = _table("source", "outcome", "samples", "share")
    table.columns[1].justify = "left"
    for source, counts in index.counts.items():
        total = sum(counts.values())
        ordered = sorted(counts.items(), key=lambda item: (item[0] != "kept", -item[1]))
        if not ordered:
            table.add_row(escape(source), "no rows", "0", "")
        for i, (reason, number) in enumerate(ordered):
            name = escape(source) if i == 0 else ""
            table.add_row(name, reason, count(number), f"{number / total:.1%}")
    return table


def class_table(index: Index) -> Any:
    """The length classes."""
    from allmem.data.inspection import summarise

    table = _table("class", "shards", "rows", "samples", "tokens", "learned", "rows filled")
    for one in summarise(index):
        numbers = (one.shards, one.rows, one.samples, one.tokens, one.response_tokens)
        table.add_row(one.name, *map(count, numbers), f"{one.filled:.1%}")
    return table


def histogram_table(index: Index) -> Any:
    """Lengths of the samples."""
    table = _table("tokens up to", "class", "samples", "")
    table.columns[3].justify = "left"
    rows = sorted(
        (int(bound), name, number)
        for name, bins in index.histogram.items()
        for bound, number in bins.items()
    )
    most = max((number for _, _, number in rows), default=1)
    for bound, name, number in rows:
        table.add_row(count(bound), name, count(number), "█" * max(1, BAR * number // most))
    return table


def rendered(stretches: Sequence[Stretch]) -> Any:
    """A sample with what is learned in green, or in brackets where there are no colours."""
    from rich.text import Text

    text = Text()
    for stretch in stretches:
        if not stretch.learned:
            text.append(stretch.text)
        elif sys.stdout.isatty():
            text.append(stretch.text, style="bold green")
        else:
            text.append(f"[[{stretch.text}]]")
    return text
