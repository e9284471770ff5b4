"""Rows of benchmarks as their authors publish them: a file of JSON lines per set, plain,
compressed, in a zip archive, or several sets in one file.

They are read from a local folder, else from the hub, whose files are downloaded as they are: the
data sets' own loading scripts are not run. What a row means is none of this module's business.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from allmem.data.packed import intact, json_lines, opened, unpacked, variants
from allmem.errors import AllMemError, first_line
from allmem.evaluation.bad_rows import bad_row
from allmem.evaluation.task import Setting
from allmem.evaluation.user_files import Line, data_folder, first_file, from_hub, hub_page

__all__ = ["Source", "read_lines"]


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
            f"{source.hub_file} from {hub_page(source.hub)}, or leave out --data to read it from "
            "the hub"
        )


def _folders(source: Source, data: Path) -> list[Path]:
    """Folders that may hold a set's file, the likeliest first."""
    data = data_folder(data)
    names = {source.suite, source.hub.split("/")[-1].lower()}
    own = sorted(path for path in data.iterdir() if path.is_dir() and path.name.lower() in names)
    archive = Path(source.hub_file).stem
    found = [folder for base in (*own, data) for folder in (base, base / "data", base / archive)]
    return [folder for folder in dict.fromkeys(found) if folder.is_dir()]


def _own_file(source: Source, folders: list[Path]) -> Path | None:
    names = [f"{source.name}.jsonl"]
    names += [source.hub_file] if source.hub_file.endswith(".zip") else []
    return first_file(
        (folder / name for folder in folders for name in names), partial(_has, source)
    )


def _has(source: Source, path: Path) -> bool:
    """Whether a file can be the set's: any but an archive of other sets."""
    if path.suffix != ".zip" or not path.is_file():
        return path.is_file()
    with from_hub(source.hub), intact(path), zipfile.ZipFile(path) as archive:
        return _member(archive, source) is not None


def _jsonl_files(folders: list[Path]) -> list[Path]:
    found = {path for folder in folders for path in folder.iterdir() if path.is_file()}
    return sorted(path for path in found if path.name.lower().endswith(variants(".jsonl")))


def _download(source: Source) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(source.hub, source.hub_file, repo_type="dataset"))
    except Exception as error:
        # From "offline" over "no such file" to a full disk, of a dozen classes.
        raise AllMemError(
            f"cannot get {source.hub_file} of {source.hub} from the hub: {type(error).__name__}: "
            f"{first_line(error)}; check the connection, or download it from "
            f"{hub_page(source.hub)} and name its folder (--data)"
        ) from error


def _read(path: Path, source: Source) -> Iterator[Line | str]:
    """The rows of a file, and what is wrong with lines that are none."""
    with from_hub(source.hub), intact(path), _open(path, source) as (stream, name):
        for number, values in json_lines(stream):
            if isinstance(values, str):
                yield f"{name}, line {number} {values}"
            else:
                yield Line(values, name, number)


@contextmanager
def _open(path: Path, source: Source) -> Iterator[tuple[IO[bytes], str]]:
    """A file, or the set's file in an archive, unpacked; and its name for messages."""
    if path.suffix != ".zip":
        with opened(path) as stream:
            yield stream, str(path)
        return
    with zipfile.ZipFile(path) as archive:
        member = _member(archive, source)
        if member is None:
            raise AllMemError(
                f"{path} holds no {source.name}.jsonl; get it from {hub_page(source.hub)}"
            )
        with archive.open(member) as packed, unpacked(packed, member) as stream:
            yield stream, f"{path}/{member}"


def _member(archive: zipfile.ZipFile, source: Source) -> str | None:
    names = variants(f"{source.name}.jsonl")
    return next((name for name in archive.namelist() if name.rpartition("/")[2] in names), None)
