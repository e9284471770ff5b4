"""Rows of short tasks in a local folder: JSON lines (plain, gzip, xz), parquet or CSV, under the
names that they have on the hub or that ``Files`` lists. What a row means is not known here.
"""

from __future__ import annotations

import csv
import gzip
import json
import lzma
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from allmem.data.readers import needed
from allmem.errors import AllMemError
from allmem.evaluation.bad_rows import bad_row
from allmem.evaluation.sources import Line
from allmem.evaluation.task import Setting

__all__ = ["Files", "read_files"]

PACKED = ("", ".gz", ".xz")
DEPTHS = ("", "*/", "*/*/")
"""A folder of data, one that holds such folders, and one that holds the hub's under owners."""
DAMAGE = (OSError, EOFError, lzma.LZMAError, zlib.error, UnicodeDecodeError)


@dataclass(frozen=True)
class Files:
    """Where the rows of a set can be."""

    patterns: tuple[str, ...]
    """Paths below the folder of data, the first one that is there counts. ``*`` stands for parts of
    one set, ``{subject}`` for sets of their own, whose name becomes a field of their rows."""
    hub: str
    """The data set on the hub."""

    @property
    def page(self) -> str:
        """Where they can be had by hand."""
        return f"https://huggingface.co/datasets/{self.hub}"


def read_files(files: Files, setting: Setting) -> Iterator[Line]:
    """The rows of a set in a local folder, in the order of its files.

    Lines that are no rows are an error, or left out if ``setting.skip_bad_rows``.

    Raises:
        AllMemError: if there is no such file, saying where it was looked for and where it can be
            had; or if it is damaged.
    """
    assert setting.data is not None
    for path, subject in _find(files, setting.data.expanduser()):
        try:
            for number, row in _read(path):
                if isinstance(row, str):
                    bad_row(setting, f"{path}, line {number} {row}")
                    continue
                if subject is not None:
                    row.setdefault("subject", subject)
                yield Line(row, str(path), number)
        except DAMAGE as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise AllMemError(
                f"{path} is damaged or cannot be read: {reason}; get it again from {files.page}"
            ) from error


def _find(files: Files, data: Path) -> list[tuple[Path, str | None]]:
    """Files, with the subject that each one's path names."""
    if not data.is_dir():
        raise AllMemError(f"there is no folder {data}; --data is a folder of benchmark files")
    for pattern in files.patterns:
        endings = PACKED if pattern.endswith(".jsonl") else ("",)
        for name in (depth + pattern + ending for ending in endings for depth in DEPTHS):
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
        f"the folders in it; get them from {files.page}, or leave out --data to read the hub"
    )


def _read(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """The rows of a file by number, from 1, and what is wrong with lines that are none."""
    if path.suffix == ".parquet":
        yield from enumerate(_parquet(path), 1)
    elif path.suffix == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            yield from ((reader.line_num, dict(row)) for row in reader)
    else:
        openers: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open}
        with openers.get(path.suffix, open)(path, "rt", encoding="utf-8") as stream:
            for number, text in enumerate(stream, 1):
                if text.strip():
                    yield number, _row(text)


def _row(text: str) -> dict[str, Any] | str:
    try:
        values = json.loads(text)
    except ValueError as error:
        return f"is not JSON: {error}"
    return values if isinstance(values, dict) else f"is a {type(values).__name__}, not a row"


def _parquet(path: Path) -> list[dict[str, Any]]:
    parquet, arrow = needed("pyarrow.parquet", "pyarrow"), needed("pyarrow", "pyarrow")
    try:
        return parquet.read_table(path).to_pylist()
    except arrow.ArrowException as error:
        raise OSError(str(error)) from error
