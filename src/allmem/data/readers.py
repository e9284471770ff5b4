"""Rows from files and from the hub, one at a time, each with the place after it.

A place is all that is needed to go on with the next row: the number of a file and of the rows
already taken from it. Rows are dictionaries, their form is none of this module's business. Nothing
is held in memory but the row (a ``.json`` list and a row group of parquet excepted).
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from allmem.data.config import SourceConfig
from allmem.data.packed import PACKED, DamagedFileError, intact, json_lines, opened
from allmem.errors import AllMemError, first_line

__all__ = ["BadRow", "Place", "Row", "list_files", "needed", "read_rows"]

KINDS = (".jsonl", ".json", ".parquet", ".txt", ".md")


@dataclass(frozen=True, order=True)
class Place:
    """``rows`` rows of file number ``file`` were read, and all files before it."""

    file: int = 0
    rows: int = 0


@dataclass(frozen=True)
class Row:
    """A row, where it came from, and the place after it."""

    values: dict[str, Any]
    name: str
    """Of the file or data set."""
    after: Place


@dataclass(frozen=True)
class BadRow:
    """A row that could not be read."""

    reason: str
    """In one line, with file and line number."""
    after: Place


def _kind(path: Path) -> str:
    """``.jsonl`` for ``a.jsonl.xz``."""
    return Path(path.stem).suffix.lower() if path.suffix in PACKED else path.suffix.lower()


def list_files(pattern: str) -> list[Path]:
    """The files behind a path, a folder or a pattern, in the order in which they are read.

    Raises:
        AllMemError: if there are none, or one of a kind that cannot be read.
    """
    path = Path(pattern).expanduser()
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.is_file() and _kind(p) in KINDS)
        if not found:
            raise AllMemError(f"the folder {path} holds no {', '.join(KINDS)} files")
        return found
    if path.is_file():
        found = [path]
    else:
        found = sorted(p for p in map(Path, glob.glob(str(path))) if p.is_file())  # noqa: PTH207 (absolute patterns)
    if not found:
        raise AllMemError(f"there is no file {path}")
    for file in found:
        if _kind(file) not in KINDS:
            raise AllMemError(
                f"{file}: files of kind {_kind(file) or file.name!r} cannot be read; known: "
                f"{', '.join(KINDS)}, also with {' or '.join(PACKED)}"
            )
    return found


def read_rows(source: SourceConfig, start: Place | None = None) -> Iterator[Row | BadRow]:
    """The rows of a source of files or of the hub, from a place on.

    ``skip`` and ``take`` of the source are not applied here.

    Raises:
        AllMemError: if a file or data set is missing, damaged or out of reach.
    """
    start = start or Place()
    if source.hub is not None:
        yield from _hub(source, start)
        return
    assert source.path is not None
    for i, file in enumerate(list_files(source.path)):
        if i < start.file:
            continue
        done = start.rows if i == start.file else 0
        with intact(file):
            yield from _file(file, i, done)


def _file(file: Path, index: int, done: int) -> Iterator[Row | BadRow]:
    kind = _kind(file)
    if kind == ".parquet":
        yield from _parquet(file, index, done)
        return
    with opened(file) as stream:
        if kind == ".jsonl":
            for number, values in json_lines(stream, done):
                after = Place(index, number)
                if isinstance(values, str):
                    yield BadRow(f"{file}, line {number} {values}", after)
                else:
                    yield Row(values, str(file), after)
        elif kind == ".json":
            yield from _list(stream, file, index, done)
        elif done == 0:
            after = Place(index, 1)
            try:
                text = stream.read().decode("utf-8-sig")
            except UnicodeDecodeError as error:
                yield BadRow(f"{file} is not UTF-8 (at byte {error.start})", after)
                return
            yield Row({"text": text, "id": file.name}, str(file), after)


def _list(stream: IO[bytes], file: Path, index: int, done: int) -> Iterator[Row | BadRow]:
    try:
        rows = json.load(stream)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise AllMemError(f"{file} is not JSON: {error}; is it .jsonl?") from error
    if not isinstance(rows, list):
        raise AllMemError(f"{file} holds a {type(rows).__name__}, not a list of rows")
    for number, values in enumerate(rows[done:], done + 1):
        after = Place(index, number)
        if isinstance(values, dict):
            yield Row(values, str(file), after)
        else:
            yield BadRow(f"{file}, row {number} is a {type(values).__name__}, not a row", after)


def _parquet(file: Path, index: int, done: int) -> Iterator[Row | BadRow]:
    parquet = needed("pyarrow.parquet", "pyarrow")
    arrow = needed("pyarrow", "pyarrow")
    number = 0
    try:
        table = parquet.ParquetFile(file)
        for group in range(table.num_row_groups):
            count = table.metadata.row_group(group).num_rows
            if number + count <= done:
                number += count
                continue
            for batch in table.iter_batches(batch_size=256, row_groups=[group]):
                for values in batch.to_pylist():
                    number += 1
                    if number > done:
                        yield Row(values, str(file), Place(index, number))
    except arrow.ArrowException as error:
        raise DamagedFileError(
            f"{file} is not a readable parquet file: {first_line(error)}"
        ) from error


def _hub(source: SourceConfig, start: Place) -> Iterator[Row | BadRow]:
    datasets = needed("datasets", "datasets")
    name = source.label
    try:
        stream = datasets.load_dataset(
            source.hub,
            source.subset,
            split=source.split,
            revision=source.revision,
            streaming=True,
        )
        rows = iter(stream.skip(start.rows) if start.rows else stream)
        first = list(islice(rows, 1))
    except Exception as error:
        # datasets and the hub raise errors of a dozen classes, from "offline" to "no such split".
        raise AllMemError(
            f"cannot read the data set {name} ({source.split}): {type(error).__name__}: "
            f"{first_line(error)}; check the name, the subset and the connection, or name files by "
            "path"
        ) from error
    number = start.rows
    while first:
        number += 1
        yield Row(dict(first[0]), name, Place(0, number))
        try:
            first = list(islice(rows, 1))
        except Exception as error:
            raise AllMemError(
                f"the data set {name} broke off after row {number}: {error}; run the same command "
                "again to go on"
            ) from error


def needed(module: str, package: str) -> Any:
    """Import a module of an optional dependency, or say which extra brings it."""
    from importlib import import_module

    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise AllMemError(
            f"this needs {package}, which is not installed; run: pip install 'allmem[train]'"
        ) from error
