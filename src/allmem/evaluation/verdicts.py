"""What was found out about stored answers afterwards, in a file beside theirs.

    RUN/<model>/<suite>__<set>.judged.ndjson      a header, then a line per judged row

It does not end in ``.jsonl``, as files of rows do. Answers are never rewritten: a verdict names its
row and the answer that it is about, and does not count for another answer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from allmem.evaluation.task import Row
from allmem.journal import Journal, Kind, begin, continued

__all__ = ["add_verdicts", "with_verdicts"]

VERDICTS = Kind(
    "verdicts",
    1,
    make="make one with `allmem evaluate --run-code`",
    again="remove it, and judge again",
    repair="judge the rest again",
)
ID, ANSWER, VERDICT = "id", "answer", "verdict"


def with_verdicts(path: Path, rows: Sequence[Row]) -> list[Row]:
    """Rows with what is known about them besides.

    Args:
        path: of the file of rows.

    Raises:
        AllMemError: if the file of verdicts is damaged.
    """
    if not _beside(path).exists():
        return list(rows)
    found = {
        (line[ID], line[ANSWER]): line[VERDICT]
        for line, _ in Journal(_beside(path), VERDICTS, _check).lines()
    }
    return [row | found.get((row["id"], _digest(row)), {}) for row in rows]


def add_verdicts(path: Path, rows: Sequence[Row], judge: Callable[[Row], Row]) -> None:
    """Judge rows, each on the disk as soon as it is.

    Args:
        path: of the file of rows.
        rows: as they are in it, those that are to be judged.

    Raises:
        AllMemError: if the file of verdicts is damaged, or the disk refuses.
    """
    if not rows:
        return
    begin(_beside(path), VERDICTS.header)
    journal = Journal(_beside(path), VERDICTS, _check)
    end = max((end for _, end in journal.lines()), default=journal.header_end)
    with continued(_beside(path), end) as pen:
        for row in rows:
            pen.write([{ID: row["id"], ANSWER: _digest(row), VERDICT: judge(row)}])


def _beside(path: Path) -> Path:
    return path.with_suffix(".judged.ndjson")


def _digest(row: Row) -> str:
    """Of what a model said."""
    return hashlib.sha256(json.dumps(row.get("predictions")).encode()).hexdigest()[:16]


def _check(line: Row) -> None:
    for key in (ID, ANSWER, VERDICT):
        line[key]
