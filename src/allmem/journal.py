"""A file that grows line by line and survives being killed: JSON Lines, the first of which is
a header that says what the file is and how the rest came about.

A line that was cut off at the end of the file does not count, and goes away when the file is
continued; any other damage is an error that names the line. It knows nothing of what the lines
mean.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from allmem.errors import AllMemError
from allmem.files import atomic_path

__all__ = ["Journal", "Kind", "Pen", "begin", "check_header", "continued", "first_difference"]

Line = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """What sort of journal a file is, and how errors speak of it."""

    name: str
    """In the header, and in "... is no file of NAME"."""
    format: int
    make: str
    """How to make one: "make one with `allmem collect`"."""
    again: str
    """What to do about one of another format: "collect the responses again"."""
    repair: str
    """What to do about the lines from a damaged one on: "collect the rest again"."""

    @property
    def header(self) -> Line:
        """How every header of this kind begins."""
        return {"kind": self.name, "format": self.format}


class Journal:
    """A journal, to be read.

    Args:
        check: raises ``ValueError``, ``KeyError`` or ``TypeError`` for a line that lacks something.

    Raises:
        AllMemError: if the file is missing, or of another kind or format.
    """

    def __init__(
        self, path: str | Path, kind: Kind, check: Callable[[Line], object] | None = None
    ) -> None:
        self.path = Path(path)
        self.kind = kind
        self.check = check
        first, self.header_end = next(self._whole_lines(), (b"", 0))
        try:
            self.header: Line = json.loads(first)
            name, version = self.header["kind"], self.header["format"]
        except (ValueError, KeyError, TypeError):
            name, version = None, None
        if name != kind.name:
            raise AllMemError(f"{self.path} is no file of {kind.name}; {kind.make}")
        if version != kind.format:
            raise AllMemError(
                f"{self.path} has format {version}, this version of allmem reads {kind.format}; "
                f"{kind.again}"
            )

    def lines(self) -> Iterator[tuple[Line, int]]:
        """Each line behind the header, and at which byte it ends.

        Raises:
            AllMemError: if a line is damaged, naming it.
        """
        for number, (line, end) in enumerate(self._whole_lines(), 1):
            if number == 1:
                continue
            yield self._parsed(line, number), end

    def _whole_lines(self) -> Iterator[tuple[bytes, int]]:
        try:
            with self.path.open("rb") as file:
                end = 0
                for line in file:
                    end += len(line)
                    if line.endswith(b"\n"):
                        yield line, end
        except FileNotFoundError:
            raise AllMemError(f"there is no file {self.path}") from None
        except OSError as error:
            raise AllMemError(f"cannot read {self.path}: {error.strerror}") from error

    def _parsed(self, line: bytes, number: int) -> Line:
        try:
            values = json.loads(line)
            if not isinstance(values, dict):
                raise ValueError("it is no object")
            if self.check is not None:
                self.check(values)
        except (ValueError, KeyError, TypeError) as error:
            raise AllMemError(
                f"{self.path}, line {number} is damaged ({error}); take it and all lines behind it "
                f"out, and {self.kind.repair}"
            ) from error
        return values


def begin(path: Path, header: Line) -> None:
    """Write the header of a file that is not there yet.

    Raises:
        AllMemError: if the folder does not exist or the disk refuses.
    """
    if not path.exists():
        with atomic_path(path) as part:
            part.write_bytes(_encoded(header))


def check_header(journal: Journal, header: Line, told: Collection[str], go_on: str) -> None:
    """Refuse to continue a file that was begun otherwise.

    Args:
        header: what it would begin with now.
        told: keys that need not agree; one of an inner dictionary as ``outer.inner``.
        go_on: what to do: "go on with the same model, ... or name another file".

    Raises:
        AllMemError: if they differ, naming the first key that does.
    """
    found = first_difference(journal.header, header, told)
    if found is not None:
        raise AllMemError(f"{journal.path} was begun with {found}; {go_on}")


def first_difference(theirs: Line, ours: Line, told: Collection[str] = ()) -> str | None:
    """``model.weights = 'a', now it is 'b'``; ``None`` if nothing differs.

    Args:
        theirs: as it was read from a file.
        told: keys that need not agree; one of an inner dictionary as ``outer.inner``.
    """
    # As it will be read back: a tuple is a list then.
    before, now = _flat(theirs), _flat(json.loads(_encoded(ours)))
    for key in dict.fromkeys([*now, *before]):
        if key not in told and before.get(key) != now.get(key):
            return f"{key} = {before.get(key)!r}, now it is {now.get(key)!r}"
    return None


class Pen:
    """Writes lines that stay: after ``write`` a power cut does not take them away."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path = path
        self._file = file

    def write(self, lines: Iterable[Line]) -> None:
        """Append lines.

        Raises:
            AllMemError: if the disk refuses.
        """
        rest = memoryview(b"".join(map(_encoded, lines)))
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _refused(self.path, error) from error


@contextlib.contextmanager
def continued(path: Path, end: int) -> Iterator[Pen]:
    """A file to be continued from a byte on; what stands behind it is dropped.

    Raises:
        AllMemError: if the disk refuses.
    """
    with contextlib.ExitStack() as opened:
        try:
            # Without a buffer: closing must not try once more to write what the disk refused.
            file = opened.enter_context(path.open("r+b", buffering=0))
            file.truncate(end)
            file.seek(end)
        except OSError as error:
            raise _refused(path, error) from error
        yield Pen(path, file)


def _refused(path: Path, error: OSError) -> AllMemError:
    return AllMemError(
        f"cannot write {path}: {error.strerror}; what is in it is unharmed. Free some space, "
        "and the same command goes on"
    )


def _encoded(line: Line) -> bytes:
    try:
        return json.dumps(line, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        # Half of a surrogate pair, as JSON's \ud800 can say and UTF-8 cannot.
        return json.dumps(line).encode() + b"\n"


def _flat(header: Line) -> Line:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``."""
    flat: Line = {}
    for key, value in header.items():
        inner = value.items() if isinstance(value, dict) else ()
        flat |= {f"{key}.{name}": below for name, below in inner} or {key: value}
    return flat
