"""Files of the user's folder of data: found, and read row by row. Any of them may be packed.

What a row means is none of this module's business.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from allmem.data.config import SourceConfig
from allmem.data.packed import DamagedFileError, intact, opened, variants
from allmem.data.readers import BadRow, read_rows
from allmem.errors import AllMemError
from allmem.evaluation.bad_rows import bad_row
from allmem.evaluation.task import Setting

__all__ = ["Line", "data_folder", "first_file", "from_hub", "hub_page", "read_json", "user_rows"]

BY_LINES = (*variants(".jsonl"), ".csv")

T = TypeVar("T")


@dataclass(frozen=True)
class Line:
    """A row as it stands in a file."""

    values: dict[str, Any]
    file: str
    number: int
    """Of the line, or of the row in files that have none, from 1."""

    @property
    def place(self) -> str:
        """For messages."""
        return f"{self.file}, {'line' if self.file.endswith(BY_LINES) else 'row'} {self.number}"


def data_folder(data: Path) -> Path:
    """The user's folder.

    Raises:
        AllMemError: if it is not there.
    """
    data = data.expanduser()
    if not data.is_dir():
        raise AllMemError(f"there is no folder {data}; --data is a folder of benchmark files")
    return data


def first_file(paths: Iterable[Path], usable: Callable[[Path], bool] = Path.is_file) -> Path | None:
    """The first of some files that is there, as it is or packed."""
    found = (path.with_name(name) for path in paths for name in variants(path.name))
    return next(filter(usable, found), None)


def user_rows(path: Path, setting: Setting) -> Iterator[Line]:
    """The rows of a file, or of all files of a folder.

    What is no row is an error, or left out if ``setting.skip_bad_rows``.
    """
    for row in read_rows(SourceConfig(path=str(path))):
        if isinstance(row, BadRow):
            bad_row(setting, row.reason)
        else:
            yield Line(row.values, row.name, row.after.rows)


def read_json(path: Path, take: Callable[[Any], T], what: str, remedy: str) -> T:
    """What ``take`` finds in a file of one value.

    Args:
        what: the file should be, for messages; ``remedy``: what to do if it is not.

    Raises:
        AllMemError: if it is damaged or of another form.
    """
    try:
        with intact(path), opened(path) as stream:
            return take(json.load(stream))
    except DamagedFileError as error:
        raise AllMemError(f"{error}; {remedy}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AllMemError(f"{path} is not {what} ({error!r}); {remedy}") from error


def hub_page(hub: str) -> str:
    """Where a data set of the hub can be had by hand."""
    return f"https://huggingface.co/datasets/{hub}"


@contextmanager
def from_hub(hub: str) -> Iterator[None]:
    """Adds to the message of a damaged file where to get it again."""
    try:
        yield
    except DamagedFileError as error:
        raise AllMemError(f"{error}; get it again from {hub_page(hub)}") from error
