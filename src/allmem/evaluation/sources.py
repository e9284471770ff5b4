"""Rows of benchmarks as their authors publish them: a file of JSON lines per set, plain,
compressed, in a zip archive, or several sets in one file.

They are read from a local folder, else from the hub, whose files are downloaded as they are: the
data sets' own loading scripts are not run. What a row means is none of this module's business.
"""

from __future__ import annotations

import gzip
import json
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from allmem.errors import AllMemError
from allmem.evaluation.bad_rows import bad_row
from allmem.evaluation.task import Setting

__all__ = ["Line", "Source", "read_lines"]

ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.xz")
DAMAGE = (OSError, EOFError, lzma.LZMAError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Source:
    """Where the rows of a set are."""

    suite: str
    """The benchmark's name here, and of its folder in ``Setting.data``."""
    name: str
    """Of the set, of its file without the ending, and in the ``dataset`` field of mixed files."""
    hub: str
    """The data set on the hub."""
    hub_file: str
    """The file of it that has the set: ``hotpotqa.jsonl``, or an archive."""

    @property
    def page(self) -> str:
        """Where it can be had by hand."""
        return f"https://huggingface.co/datasets/{self.hub}"


@dataclass(frozen=True)
class Line:
    """A row as it stands in a file."""

    values: dict[str, Any]
    file: str
    number: int
    """Of the line, from 1."""

    @property
    def place(self) -> str:
        """For messages."""
        return f"{self.file}, line {self.number}"


def read_lines(source: Source, setting: Setting) -> Iterator[Line]:
    """The rows of a set, in the order of its file.

    Lines that are no rows are an error, or left out if ``setting.skip_bad_rows``.

    Raises:
        AllMemError: if there is no such file, saying where it was looked for and where it can be
            had; if it is damaged or out of reach.
    """
    folders = [] if setting.data is None else _folders(source, setting.data)
    file = _download(source) if setting.data is None else _own_file(source, folders)
    if file is not None:
        for line in _read(file, source):
            if isinstance(line, Line):
                yield line
            else:
                bad_row(setting, line)
        return
    found = 0
    for mixed in _jsonl_files(folders):
        before = found
        problems: list[str] = []
        for line in _read(mixed, source):
            if not isinstance(line, Line):
                problems.append(line)
            elif line.values.get("dataset") == source.name:
                found += 1
                yield line
        # Those of a file that has nothing to do with this set are not its business.
        for problem in problems if found > before else ():
            bad_row(setting, problem)
    if not found:
        raise AllMemError(
            f"{setting.data} has no rows of {source.suite}/{source.name}: looked for "
            f"{source.name}.jsonl (also .gz, .xz), {source.hub_file}, and files of several sets "
            f'with "dataset": "{source.name}", in {", ".join(map(str, folders))}; get '
            f"{source.hub_file} from {source.page}, or leave out --data to read it from the hub"
        )


def _folders(source: Source, data: Path) -> list[Path]:
    """Folders that may hold a set's file, the likeliest first."""
    data = data.expanduser()
    if not data.is_dir():
        raise AllMemError(f"there is no folder {data}; --data is a folder of benchmark files")
    names = {source.suite, source.hub.split("/")[-1].lower()}
    own = sorted(path for path in data.iterdir() if path.is_dir() and path.name.lower() in names)
    unpacked = Path(source.hub_file).stem
    found = [folder for base in (*own, data) for folder in (base, base / "data", base / unpacked)]
    return [folder for folder in dict.fromkeys(found) if folder.is_dir()]


def _own_file(source: Source, folders: list[Path]) -> Path | None:
    names = [source.name + ending for ending in ENDINGS]
    names += [source.hub_file] if source.hub_file.endswith(".zip") else []
    paths = [folder / name for folder in folders for name in names]
    return next((path for path in paths if path.is_file() and _has(path, source)), None)


def _has(path: Path, source: Source) -> bool:
    """Whether a file can be the set's: any but an archive of other sets."""
    if path.suffix != ".zip":
        return True
    with _whole(str(path)), zipfile.ZipFile(path) as archive:
        return _member(archive, source) is not None


def _jsonl_files(folders: list[Path]) -> list[Path]:
    found = {path for folder in folders for path in folder.iterdir() if path.is_file()}
    return sorted(path for path in found if path.name.lower().endswith(ENDINGS))


def _download(source: Source) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(source.hub, source.hub_file, repo_type="dataset"))
    except Exception as error:
        # From "offline" over "no such file" to a full disk, of a dozen classes.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise AllMemError(
            f"cannot get {source.hub_file} of {source.hub} from the hub: {type(error).__name__}: "
            f"{reason}; check the connection, or download it from {source.page} and name its "
            "folder (--data)"
        ) from error


def _read(path: Path, source: Source) -> Iterator[Line | str]:
    """The rows of a file, and what is wrong with lines that are none."""
    with _whole(str(path)), _open(path, source) as (stream, name):
        for number, text in enumerate(stream, 1):
            if not text.strip():
                continue
            try:
                values = json.loads(text)
                problem = f"is a {type(values).__name__}, not a row"
            except ValueError as error:
                values, problem = None, f"is not JSON: {error}"
            if isinstance(values, dict):
                yield Line(values, name, number)
            else:
                yield f"{name}, line {number} {problem}"


@contextmanager
def _whole(name: str) -> Iterator[None]:
    """Turns what damaged files raise into a message."""
    try:
        yield
    except DAMAGE as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise AllMemError(
            f"{name} is damaged or cannot be read: {reason}; download it again"
        ) from error


@contextmanager
def _open(path: Path, source: Source) -> Iterator[tuple[IO[bytes], str]]:
    """A file, or the set's file in an archive, unpacked; and its name for messages."""
    if path.suffix != ".zip":
        with path.open("rb") as file, _unpacked(file, path.name) as stream:
            yield stream, str(path)
        return
    with zipfile.ZipFile(path) as archive:
        member = _member(archive, source)
        if member is None:
            raise AllMemError(f"{path} holds no {source.name}.jsonl; get it from {source.page}")
        with archive.open(member) as packed, _unpacked(packed, member) as stream:
            yield stream, f"{path}/{member}"


def _unpacked(stream: IO[bytes], name: str) -> IO[bytes]:
    if name.endswith(".gz"):
        return cast("IO[bytes]", gzip.GzipFile(fileobj=stream))
    if name.endswith(".xz"):
        return lzma.LZMAFile(stream)
    return stream


def _member(archive: zipfile.ZipFile, source: Source) -> str | None:
    names = {source.name + ending for ending in ENDINGS}
    return next((name for name in archive.namelist() if name.rpartition("/")[2] in names), None)
