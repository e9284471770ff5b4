"""Samples on disk: shards of packed rows and one index that says which shards count.

A data folder holds ``index.json`` and safetensors files. A shard is one class of one block; what is
not in the index does not exist, so a shard that was written before a crash is simply written again.
Files are written beside their destination, renamed when complete, and carry checksums.

A shard keeps N tokens of D samples in R rows, without padding:

    input_ids [N] int32         response [N] bool
    document_starts [D + 1]     row_starts [R + 1]      int64, in tokens, the end included

Beside it may stand what a teacher said of its responses, in files of some rows each: the k
likeliest words for n tokens.

    places [n] int64, ascending, in tokens of the shard
    teacher_ids [n, k] int32    teacher_log_probs [n, k] float16
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from allmem.data.fitting import Sample
from allmem.errors import AllMemError
from allmem.files import atomic_path, read_tensors, write_tensors

__all__ = [
    "INDEX",
    "Answers",
    "Index",
    "Shard",
    "read_index",
    "read_shard",
    "write_answers",
    "write_index",
    "write_shard",
]

INDEX = "index.json"
FORMAT = 1
ANSWERS = "teacher's answers"
"""The kind of such a file."""


@dataclass(frozen=True)
class Answers:
    """What a teacher said of some rows of a shard."""

    places: Tensor
    teacher_ids: Tensor
    teacher_log_probs: Tensor


@dataclass(frozen=True)
class Shard:
    """One shard in memory."""

    input_ids: Tensor
    response: Tensor
    document_starts: Tensor
    row_starts: Tensor
    samples: list[dict[str, Any]]
    """[D] source, id, and whether it was cut."""
    answers: Sequence[Answers] = ()
    """Of all rows, if there is a teacher."""

    @property
    def rows(self) -> int:
        return len(self.row_starts) - 1

    def row(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, response mask and positions of a row, each [T]; positions restart at 0 with each
        document."""
        begin, end = self.row_starts[number : number + 2].tolist()
        starts = self.document_starts
        inside = starts[(starts >= begin) & (starts < end)]
        places = torch.arange(begin, end)
        positions = places - inside[torch.searchsorted(inside, places, right=True) - 1]
        return self.input_ids[begin:end], self.response[begin:end], positions

    def answered(self, number: int) -> dict[str, Tensor]:
        """``teacher_ids`` and ``teacher_log_probs`` of a row, [T, k] each: of the token *at* a
        slot, zeros where it is not learned. Empty without a teacher."""
        begin, end = self.row_starts[number : number + 2].tolist()
        found: dict[str, Tensor] = {}
        for part in self.answers:
            first, last = torch.searchsorted(part.places, torch.tensor([begin, end])).tolist()
            slots = part.places[first:last] - begin
            for name in ("teacher_ids", "teacher_log_probs"):
                said = getattr(part, name)[first:last]
                full = found.setdefault(name, said.new_zeros(end - begin, said.shape[1]))
                full[slots] = said
        return found


@dataclass
class Index:
    """What a data folder holds, and how far its build came."""

    config: dict[str, Any]
    """As ``DataConfig.to_dict``."""
    fingerprint: str
    """Of configuration, tokenizer, template and input files: what a resumed build must agree on."""
    origin: dict[str, Any]
    """Tokenizer, template, input files with their sizes, versions."""
    shards: list[dict[str, Any]]
    """file, class, rows, samples, tokens, response_tokens, bytes, sha256."""
    counts: dict[str, dict[str, int]]
    """Source -> reason or outcome -> number."""
    histogram: dict[str, dict[str, int]]
    """Class -> upper bound of the sample length -> samples."""
    progress: dict[str, Any]
    """block, source, place; ``done`` when complete."""
    seen: list[str]
    """Files of what was seen, for the search of duplicates."""
    teacher: dict[str, Any] | None = None
    """name, fingerprint, dtype, words of its vocabulary, top (k), and ``of``, the fingerprint of
    the data that it was asked about. Each entry of ``shards`` then has ``answers``: file, rows,
    tokens, bytes, sha256."""

    @property
    def done(self) -> bool:
        return bool(self.progress.get("done"))

    def of_class(self, name: str) -> list[dict[str, Any]]:
        return [shard for shard in self.shards if shard["class"] == name]

    @property
    def classes(self) -> list[str]:
        return list(dict.fromkeys(shard["class"] for shard in self.shards))


def write_shard(
    folder: Path, name: str, length_class: str, rows: Sequence[Sequence[Sample]]
) -> dict[str, Any]:
    """Write rows of samples and return their entry for the index.

    Raises:
        AllMemError: if the disk is full or refuses; nothing is left behind then.
    """
    samples = [sample for row in rows for sample in row]
    sizes = [len(sample) for sample in samples]
    row_sizes = [sum(len(sample) for sample in row) for row in rows]
    tensors = {
        "input_ids": torch.from_numpy(np.concatenate([s.ids for s in samples])),
        "response": torch.from_numpy(np.concatenate([s.response for s in samples])),
        "document_starts": torch.tensor([0, *np.cumsum(sizes)], dtype=torch.int64),
        "row_starts": torch.tensor([0, *np.cumsum(row_sizes)], dtype=torch.int64),
    }
    notes = [{"source": s.source, "id": s.id, "cut": s.cut} for s in samples]
    path = folder / name
    write_tensors(path, "data shard", tensors, {"class": length_class, "samples": notes})
    return {
        "file": name,
        "class": length_class,
        "rows": len(rows),
        "samples": len(samples),
        "tokens": sum(sizes),
        "response_tokens": int(sum(int(s.response.sum()) for s in samples)),
        "bytes": path.stat().st_size,
        "sha256": _digest(path),
    }


def write_answers(folder: Path, name: str, rows: int, answers: Answers) -> dict[str, Any]:
    """Write what a teacher said of ``rows`` rows of a shard and return its entry for the index.

    Raises:
        AllMemError: if the disk is full or refuses; nothing is left behind then.
    """
    path = folder / name
    write_tensors(path, ANSWERS, vars(answers), {})
    return {
        "file": name,
        "rows": rows,
        "tokens": len(answers.places),
        "bytes": path.stat().st_size,
        "sha256": _digest(path),
    }


def read_shard(folder: Path, entry: dict[str, Any]) -> Shard:
    """Read and verify a shard of the index.

    Raises:
        AllMemError: if it is missing, truncated, altered, or another one than the index says.
    """
    path = folder / entry["file"]
    _check_size(folder, entry)
    tensors, header = read_tensors(path, "data shard")
    shard = Shard(
        tensors["input_ids"],
        tensors["response"],
        tensors["document_starts"],
        tensors["row_starts"],
        header["samples"],
        [_read_answers(folder, part) for part in entry.get("answers", [])],
    )
    if shard.rows != entry["rows"] or len(shard.input_ids) != entry["tokens"]:
        raise AllMemError(
            f"{path} is not the shard that {INDEX} lists ({shard.rows} rows, not {entry['rows']}); "
            "was it copied from another folder? Build the data again"
        )
    return shard


def _read_answers(folder: Path, entry: dict[str, Any]) -> Answers:
    _check_size(folder, entry)
    return Answers(**read_tensors(folder / entry["file"], ANSWERS)[0])


def _check_size(folder: Path, entry: dict[str, Any]) -> None:
    path = folder / entry["file"]
    if not path.is_file():
        raise AllMemError(
            f"shard {path} is missing, but {INDEX} lists it; copy it there, or build the data again"
        )
    found = path.stat().st_size
    if found != entry["bytes"]:
        raise AllMemError(
            f"shard {path} has {found} bytes, {INDEX} says {entry['bytes']}: it is damaged; copy "
            "it again, or build the data again"
        )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_index(folder: Path, index: Index) -> None:
    """Write the index; with it everything that it lists comes into being.

    Raises:
        AllMemError: if the disk is full or refuses; the old index stays then.
    """
    text = json.dumps({"format": FORMAT, **vars(index)}, ensure_ascii=False, indent=1)
    with atomic_path(folder / INDEX) as part:
        part.write_text(text, encoding="utf-8")


def read_index(folder: str | Path, check: bool = True) -> Index:
    """Read the index of a data folder.

    Args:
        check: look whether every shard is there and has its size.

    Raises:
        AllMemError: if the folder holds no index, a damaged one, or not all of its shards.
    """
    folder = Path(folder)
    path = folder / INDEX
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values.pop("format")
        if version != FORMAT:
            raise AllMemError(
                f"{path} has format {version}, this version of allmem reads {FORMAT}; build the "
                "data again"
            )
        index = Index(**values)
    except FileNotFoundError:
        raise AllMemError(
            f"{folder} is no data folder (it holds no {INDEX}); make one with `allmem data build`"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise AllMemError(f"{path} is damaged ({error}); build the data again") from error
    if check:
        for shard in index.shards:
            for file in (shard, *shard.get("answers", [])):
                _check_size(folder, file)
    return index
