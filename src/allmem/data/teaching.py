"""``teach_data``: what a teacher says of every token that is learned, stored with the data.

The teacher reads each row once, with full attention and packed documents apart, and a student is
then trained without it (``allmem.distill.teacher.Stored``). A new data folder is made: the shards
of the old one, copied, and beside each the k likeliest words for its responses. The index is
written after every file and says how far it came, so that a run that is killed at any point goes on
from there, to the same folder, byte for byte.

It knows nothing of students and losses.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from allmem.data.pipeline import load_chat_tokenizer, tokenizer_hash
from allmem.data.shards import (
    INDEX,
    Answers,
    Index,
    Shard,
    read_index,
    read_shard,
    write_answers,
    write_index,
)
from allmem.distill.evaluate import head_of
from allmem.distill.targets import FullTarget, top_log_probs
from allmem.distill.teacher import OtherModel, OwnWeights, Teacher
from allmem.errors import AllMemError
from allmem.files import atomic_path
from allmem.models.fingerprint import fingerprint
from allmem.models.modeling import AllMemForCausalLM
from allmem.models.sources import load_tokenizer
from allmem.opening import open_base, resolve
from allmem.schema import check_positive

__all__ = ["TOP", "Taught", "stored_bytes", "teach_data"]

TOP = 64
"""Words that are stored of each prediction."""
PART_TOKENS = 250_000
"""A file of answers is committed when the teacher has read so many tokens; a run that is killed
loses one at most."""
PART_BYTES = 64_000_000
"""Or when the answers have come to so much."""


@dataclass(frozen=True)
class Taught:
    """How far the teacher is, for a progress bar."""

    rows: int
    all_rows: int
    tokens: int
    """Read, of the whole folder."""
    all_tokens: int
    tokens_per_second: float
    """Of this run alone."""

    @property
    def seconds_left(self) -> float:
        return (self.all_tokens - self.tokens) / max(self.tokens_per_second, 1e-9)


def stored_bytes(index: Index, top: int) -> int:
    """About how large the folder will be."""
    tokens = sum(shard["response_tokens"] for shard in index.shards)
    return tokens * _answer_bytes(top) + sum(shard["bytes"] for shard in index.shards)


def _answer_bytes(top: int) -> int:
    """Of a token: its place, and a word and a log-probability ``top`` times."""
    return 8 + (4 + 2) * top


def teach_data(
    folder: str | Path,
    teacher: str,
    output: str | Path,
    *,
    top: int = TOP,
    dtype: str | None = None,
    device: str | None = None,
    on_progress: Callable[[Taught], None] | None = None,
) -> Index:
    """Make a data folder with a teacher's answers, or go on with it.

    Args:
        folder: made by ``build_data``; it is only read.
        teacher: a plain or a converted model with the tokenizer of the folder; read with full
            attention either way.
        output: a new or empty folder, or one that the same call began.
        top: words that are stored of each prediction; as many as the vocabulary has for all.
        dtype, device: of the teacher; see ``open_model``.

    Returns:
        The finished index.

    Raises:
        AllMemError: if the data is incomplete or damaged, the teacher has another tokenizer, the
            output was begun otherwise, or the disk is too small. What was committed stays; the
            same call goes on from it.
    """
    source, target = Path(folder), Path(output)
    check_positive(top=top)
    index = read_index(source)
    if not index.done:
        raise AllMemError(f"{source} is not complete; run the same `allmem data build` to go on")
    _check_place(source, target)
    _check_tokenizer(index, source, teacher)
    model, _ = open_base(teacher, dtype=dtype, device=device)
    words = model.get_input_embeddings().num_embeddings
    if top > words:
        raise AllMemError(f"top = {top} is more than the {words} words of {teacher}")
    taught = _open_output(
        target,
        index,
        {
            "name": teacher,
            "fingerprint": fingerprint(dict(model.named_parameters())),
            "dtype": str(model.dtype).removeprefix("torch."),
            "words": words,
            "top": top,
            "of": index.fingerprint,
        },
    )
    if taught.done:
        return taught
    _check_room(target, index, taught, top)
    pace = _Pace(index, taught, on_progress)
    asked = _teacher_of(model)
    for number, entry in enumerate(index.shards):
        if number == len(taught.shards):
            _copy(source / entry["file"], target / entry["file"])
            # A teacher who was asked before gives way to this one.
            taught.shards.append({**entry, "answers": []})
        answers = taught.shards[number]["answers"]
        first = sum(part["rows"] for part in answers)
        if first == entry["rows"]:
            continue
        shard = read_shard(target, {k: v for k, v in entry.items() if k != "answers"})
        for rows, part in _parts(shard, first, asked, model.device, top, pace):
            name = f"{Path(entry['file']).stem}-teacher-{len(answers):03d}.safetensors"
            answers.append(write_answers(target, name, rows, part))
            write_index(target, taught)
    taught.progress |= {"done": True}
    write_index(target, taught)
    return taught


def _teacher_of(model: PreTrainedModel) -> Teacher:
    """Full attention, also of a converted model."""
    if isinstance(model, AllMemForCausalLM):
        return OwnWeights(model, head_of(model))
    return OtherModel(model, model)


def _parts(
    shard: Shard,
    first: int,
    teacher: Teacher,
    device: torch.device,
    top: int,
    pace: _Pace,
) -> Iterator[tuple[int, Answers]]:
    """The answers from row ``first`` of a shard on, file by file, each with its rows."""
    said: list[tuple[Tensor, Tensor, Tensor]] = []
    tokens = size = 0
    for row in range(first, shard.rows):
        said.append(_ask(shard, row, teacher, device, top))
        length = int(shard.row_starts[row + 1] - shard.row_starts[row])
        pace.advance(length)
        tokens += length
        size += len(said[-1][0]) * _answer_bytes(top)
        if tokens >= PART_TOKENS or size >= PART_BYTES or row == shard.rows - 1:
            yield len(said), Answers(*(torch.cat(tensors) for tensors in zip(*said, strict=True)))
            said, tokens, size = [], 0, 0


@torch.no_grad()
def _ask(
    shard: Shard, row: int, teacher: Teacher, device: torch.device, top: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Places [n], words [n, k] and their log-probabilities [n, k] of a row's responses."""
    ids, response, positions = shard.row(row)
    # The first token of a document is predicted from nothing.
    counts = (response & (positions > 0))[1:]
    batch = {"input_ids": ids.long(), "position_ids": positions}
    batch = {name: tensor[None].to(device) for name, tensor in batch.items()}
    target = teacher(batch, counts[None].to(device))
    assert isinstance(target, FullTarget)
    words, log_probs = top_log_probs(target.hidden, target.head, top)
    places = shard.row_starts[row] + 1 + counts.nonzero()[:, 0]
    return places, words.cpu(), log_probs.cpu()


class _Pace:
    """Counts what was read and reports it."""

    def __init__(
        self, index: Index, taught: Index, on_progress: Callable[[Taught], None] | None
    ) -> None:
        self.all_rows = sum(shard["rows"] for shard in index.shards)
        self.all_tokens = sum(shard["tokens"] for shard in index.shards)
        self.rows = sum(p["rows"] for shard in taught.shards for p in shard["answers"])
        # A shard that was begun counts by its share of rows.
        self.tokens = sum(
            round(shard["tokens"] * sum(p["rows"] for p in shard["answers"]) / shard["rows"])
            for shard in taught.shards
        )
        self.before, self.begun = self.tokens, time.perf_counter()
        self.on_progress = on_progress

    def advance(self, tokens: int) -> None:
        self.rows += 1
        self.tokens += tokens
        if self.on_progress is not None:
            pace = (self.tokens - self.before) / max(time.perf_counter() - self.begun, 1e-9)
            now = Taught(self.rows, self.all_rows, self.tokens, self.all_tokens, pace)
            self.on_progress(now)


# Before the teacher is asked


def _check_place(source: Path, target: Path) -> None:
    """Refuse a folder that holds something else."""
    try:
        target.mkdir(parents=True, exist_ok=True)
        if target.samefile(source):
            raise AllMemError(f"{target} is the data itself; name another folder")
        for torn in target.glob(".*.part"):
            # What a killed run was writing.
            torn.unlink(missing_ok=True)
        others = [] if (target / INDEX).exists() else [f.name for f in target.iterdir()]
    except OSError as error:
        raise AllMemError(f"cannot write to {target}: {error.strerror}") from error
    if others:
        raise AllMemError(
            f"{target} holds other files ({others[0]}, ...); name a new or empty folder"
        )


def _check_tokenizer(index: Index, folder: Path, teacher: str) -> None:
    """Refuse a teacher for whom the same numbers are other words."""
    tokenizer = load_tokenizer(resolve(teacher))
    if tokenizer_hash(tokenizer) == index.origin["tokenizer"]:
        return
    name = index.config["model"]
    try:
        own = load_chat_tokenizer(name, index.config["template"])
    except AllMemError as error:
        raise AllMemError(
            f"the tokenizer of {teacher} is not the one that {folder} was built with, and whether "
            f"their words are the same cannot be seen: {error}"
        ) from error
    words, others = own.get_vocab(), tokenizer.get_vocab()
    if words != others:
        word = min(w for w in words.keys() | others.keys() if words.get(w) != others.get(w))
        raise AllMemError(
            f"{teacher} has another tokenizer than {name}, with which {folder} was built (for "
            f"example {word!r} is {others.get(word)} there and {words.get(word)} here); a teacher "
            "must share it, or build the data again for this one"
        )


def _open_output(target: Path, index: Index, teacher: dict[str, Any]) -> Index:
    """The index to go on from; a new one is written at once."""
    if (target / INDEX).exists():
        taught = read_index(target)
        if taught.teacher is None:
            raise AllMemError(f"{target} holds data without a teacher; name a new or empty folder")
        for key, value in teacher.items():
            # The same weights may lie elsewhere.
            if key != "name" and taught.teacher.get(key) != value:
                raise AllMemError(
                    f"{target} was begun otherwise: {NAMES[key]} was "
                    f"{taught.teacher.get(key)!r}, now it is {value!r}; name another folder, or "
                    "remove that one"
                )
        return taught
    text = f"{index.fingerprint} {teacher['fingerprint']} {teacher['top']}"
    taught = dataclasses.replace(
        index,
        fingerprint=hashlib.sha256(text.encode()).hexdigest()[:16],
        shards=[],
        progress={**index.progress, "done": False},
        # Only a build goes on from these.
        seen=[],
        teacher=teacher,
    )
    write_index(target, taught)
    return taught


NAMES = {
    "fingerprint": "the fingerprint of the teacher",
    "dtype": "its precision",
    "words": "its vocabulary",
    "top": "the number of words",
    "of": "the fingerprint of the data",
}


def _check_room(target: Path, index: Index, taught: Index, top: int) -> None:
    there = sum(file["bytes"] for shard in taught.shards for file in (shard, *shard["answers"]))
    needed, free = stored_bytes(index, top) - there, shutil.disk_usage(target).free
    if needed > free:
        raise AllMemError(
            f"{target} needs about {needed / 1e9:.3g} GB more, and the disk has "
            f"{free / 1e9:.3g} GB left; free some space, store fewer words than top = {top}, or "
            "name another disk"
        )


def _copy(source: Path, target: Path) -> None:
    with atomic_path(target) as part:
        shutil.copyfile(source, part)
