"""Files as they lie on disk, plain or packed, and the lines of JSON in them."""

from __future__ import annotations

import gzip
import json
import lzma
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from allmem.errors import AllMemError

__all__ = ["PACKED", "DamagedFileError", "intact", "json_lines", "opened", "unpacked", "variants"]

PACKED = (".gz", ".xz")
DAMAGE = (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError, zipfile.BadZipFile, zlib.error)


class DamagedFileError(AllMemError):
    """A file that cannot be read to its end."""


@contextmanager
def intact(name: object) -> Iterator[None]:
    """Turns what damaged files raise into a message.

    Raises:
        DamagedFileError: with the file's name and the reason.
    """
    try:
        yield
    except DAMAGE as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DamagedFileError(f"{name} is damaged or cannot be read: {reason}") from error


def variants(name: str) -> tuple[str, ...]:
    """The names under which a file may lie, plain first."""
    return (name, *(name + ending for ending in PACKED))


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """A file's bytes, unpacked."""
    with path.open("rb") as file, unpacked(file, path.name) as stream:
        yield stream


def unpacked(stream: IO[bytes], name: str) -> IO[bytes]:
    """The bytes of a file of that name."""
    if name.endswith(".gz"):
        return cast("IO[bytes]", gzip.GzipFile(fileobj=stream))
    if name.endswith(".xz"):
        return lzma.LZMAFile(stream)
    return stream


def json_lines(
    stream: Iterable[bytes], done: int = 0
) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """The rows of a file behind its first ``done`` lines, each with the number of its line, from 1;
    of a line that is no row, what is wrong with it. Blank lines are passed over."""
    for number, text in enumerate(stream, 1):
        if number <= done or not text.strip():
            continue
        try:
            values = json.loads(text)
        except ValueError as error:
            yield number, f"is not JSON: {error}"
            continue
        if isinstance(values, dict):
            yield number, values
        else:
            yield number, f"is a {type(values).__name__}, not a row"
