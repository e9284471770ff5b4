"""Rows of short tasks in a local folder: JSON lines (plain, gzip, xz), parquet or CSV, under the
names that they have on the hub or that ``Files`` lists. What a row means is not known here.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from allmem.data.packed import intact, variants
from allmem.errors import AllMemError
from allmem.evaluation.task import Setting
from allmem.evaluation.user_files import Line, data_folder, from_hub, hub_page, user_rows

__all__ = ["Files", "read_files"]

DEPTHS = ("", "*/", "*/*/")
"""A folder of data, one that holds such folders, and one that holds the hub's under owners."""


@dataclass(frozen=True)
class Files:
    """Where the rows of a set can be."""

    patterns: tuple[str, ...]
    """Paths below the folder of data, the first one that is there counts. ``*`` stands for parts of
    one set, ``{subject}`` for sets of their own, whose name becomes a field of their rows."""
    hub: str
    """The data set on the hub."""


def read_files(files: Files, setting: Setting) -> Iterator[Line]:
    """The rows of a set in a local folder, in the order of its files.

    Lines that are no rows are an error, or left out if ``setting.skip_bad_rows``.

    Raises:
        AllMemError: if there is no such file, saying where it was looked for and where it can be
            had; or if it is damaged.
    """
    assert setting.data is not None
    for path, subject in _find(files, data_folder(setting.data)):
        with from_hub(files.hub):
            for line in _csv(path) if path.suffix == ".csv" else user_rows(path, setting):
                if subject is not None:
                    line.values.setdefault("subject", subject)
                yield line


def _find(files: Files, data: Path) -> list[tuple[Path, str | None]]:
    """Files, with the subject that each one's path names."""
    for pattern in files.patterns:
        names = variants(pattern) if pattern.endswith(".jsonl") else (pattern,)
        for name in (depth + variant for variant in names for depth in DEPTHS):
            found = sorted(data.glob(name.replace("{subject}", "*")))
            if found and "{subject}" in name:
                named = re.escape(name).replace(r"\*", "[^/]*").replace(r"\{subject\}", "([^/]*)")
                paths = [(path, path.relative_to(data).as_posix()) for path in found]
                matches = [(path, re.fullmatch(named, text)) for path, text in paths]
                return [(path, match[1]) for path, match in matches if match is not None]
            if found:
                parts = found if "*" in pattern else found[:1]
                return [(path, None) for path in parts if path.parent == found[0].parent]
    raise AllMemError(
        f"{data} has none of {', '.join(files.patterns)} (JSON lines also as .gz or .xz), nor have "
        f"the folders in it; get them from {hub_page(files.hub)}, or leave out --data to read the "
        "hub"
    )


def _csv(path: Path) -> Iterator[Line]:
    with intact(path), path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream)
        for row in reader:
            yield Line(dict(row), str(path), reader.line_num)
