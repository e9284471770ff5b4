"""``build_data``: from sources to a data folder, block by block.

A block is some thousand rows of input. What became of them (shards, counts, what was seen) is
written first, and the index last: with it the block is done, and the place in the sources behind
it. A build that is killed at any point goes on from there, so that no row is lost or read twice,
and the folder is the same, byte for byte, as if it had never been killed.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from allmem.data.adapters import conversations
from allmem.data.builders import Material, make_builder
from allmem.data.config import DataConfig, SourceConfig
from allmem.data.conversation import Conversation, Dropped
from allmem.data.fitting import Sample
from allmem.data.packing import pack
from allmem.data.pipeline import Pipeline, load_chat_tokenizer, tokenizer_hash
from allmem.data.readers import BadRow, Place, list_files, read_rows
from allmem.data.shards import INDEX, Index, read_index, write_index, write_shard
from allmem.errors import AllMemError
from allmem.files import read_tensors, write_tensors

__all__ = ["KEPT", "Report", "build_data"]

KEPT = "kept"
"""The count of samples that were not left out."""
BAD_ROW = "bad_row"


@dataclass(frozen=True)
class Report:
    """How far a build is, for a progress bar."""

    source: str
    rows: int
    """Read in all, over all sources."""
    kept: int
    tokens: int


@dataclass
class _Block:
    """What one block of input became."""

    samples: dict[str, list[Sample]]
    counts: Counter[tuple[str, str]]
    rows: int = 0
    tokens: int = 0


def build_data(
    config: DataConfig,
    output: str | Path,
    on_progress: Callable[[Report], None] | None = None,
    tokenizer: Any = None,
) -> Index:
    """Build a data folder, or go on with it.

    Args:
        output: a new or empty folder, or one with an unfinished build of the same configuration.
        tokenizer: in place of the one that ``config.model`` names.

    Returns:
        The finished index.

    Raises:
        AllMemError: on sources that cannot be read, a folder built with another configuration, or
            a full disk. What was committed stays; the same call goes on from it.
    """
    folder = Path(output)
    tokenizer = tokenizer or load_chat_tokenizer(config.model, config.template)
    pipeline = Pipeline(config, tokenizer)
    origin = _origin(config, tokenizer)
    index = _open_folder(folder, config, origin)
    if index.done:
        return index
    for file in index.seen:
        pipeline.seen.restore(read_tensors(folder / file, "seen")[0])
    sources = config.parsed_sources
    for number in range(index.progress["source"], len(sources)):
        _build_source(number, sources[number], pipeline, folder, index, on_progress)
    index.progress |= {"done": True}
    write_index(folder, index)
    return index


def _build_source(
    number: int,
    source: SourceConfig,
    pipeline: Pipeline,
    folder: Path,
    index: Index,
    on_progress: Callable[[Report], None] | None,
) -> None:
    config = pipeline.config
    block, before = _Block({}, Counter()), _totals(index)
    for item, after, row in _items(source, pipeline, index.progress):
        block.rows += 1
        for conversation in _conversations(item, source, config, block):
            try:
                length, sample = pipeline(conversation, source.length)
            except Dropped as verdict:
                block.counts[source.label, verdict.reason] += 1
                continue
            block.samples.setdefault(length, []).append(sample)
            block.counts[source.label, KEPT] += 1
            block.tokens += len(sample)
        if on_progress is not None:
            rows, kept, tokens = before
            now = kept + sum(map(len, block.samples.values()))
            on_progress(Report(source.label, rows + block.rows, now, tokens + block.tokens))
        if block.tokens >= config.shard_tokens or block.rows >= config.block_rows:
            index.progress |= {"place": [after.file, after.rows], "row": row}
            _commit(block, pipeline, folder, index, source.label)
            block, before = _Block({}, Counter()), _totals(index)
    index.progress |= {"source": number + 1, "place": [0, 0], "row": 0}
    _commit(block, pipeline, folder, index, source.label)


def _totals(index: Index) -> tuple[int, int, int]:
    """Rows read, samples kept and their tokens, of all committed blocks."""
    kept = sum(counts.get(KEPT, 0) for counts in index.counts.values())
    return index.progress["rows"], kept, sum(shard["tokens"] for shard in index.shards)


Item = Conversation | BadRow | tuple[dict[str, Any], int]


def _items(
    source: SourceConfig, pipeline: Pipeline, progress: dict[str, Any]
) -> Iterator[tuple[Item, Place, int]]:
    """What is left of a source, each item with the place after it and its number, from 1."""
    place, number = Place(*progress["place"]), progress["row"]
    if source.build is not None:
        material = Material(pipeline.tokenizer, source.length, pipeline.config)
        builder = make_builder(source.build, source.options, material, source.label)
        assert source.take is not None
        for n in range(number, source.take):
            yield builder.sample(n), place, n + 1
        return
    for row in read_rows(source, place):
        number += 1
        if source.take is not None and number > source.skip + source.take:
            return
        if number > source.skip:
            item: Item = row if isinstance(row, BadRow) else (row.values, number)
            yield item, row.after, number


def _conversations(
    item: Item, source: SourceConfig, config: DataConfig, block: _Block
) -> Iterator[Conversation]:
    if isinstance(item, Conversation):
        yield item
        return
    if isinstance(item, BadRow):
        if config.bad_rows == "stop":
            raise AllMemError(f"{item.reason}; mend it, or set bad_rows: skip to leave it out")
        block.counts[source.label, BAD_ROW] += 1
        return
    values, number = item
    try:
        yield from conversations(values, source.form, source.fields, source.label, number)
    except Dropped as verdict:
        block.counts[source.label, verdict.reason] += 1


def _commit(block: _Block, pipeline: Pipeline, folder: Path, index: Index, label: str) -> None:
    """Write what a block became, the index last."""
    number = index.progress["block"]
    lengths = dict(pipeline.config.classes)
    for name in sorted(block.samples):
        samples = block.samples[name]
        rows = pack([len(s) for s in samples], lengths[name], pipeline.config.pack)
        entry = write_shard(
            folder,
            f"{name}-{number:05d}.safetensors",
            name,
            [[samples[i] for i in row] for row in rows],
        )
        index.shards.append(entry)
        bins = index.histogram.setdefault(name, {})
        for sample in samples:
            bound = str(1 << (len(sample) - 1).bit_length())
            bins[bound] = bins.get(bound, 0) + 1
    new = pipeline.seen.take_new()
    if len(new["keys"]):
        name = f"seen-{number:05d}.safetensors"
        write_tensors(folder / name, "seen", new, {})
        index.seen.append(name)
    for (name, reason), count in block.counts.items():
        counts = index.counts.setdefault(name, {})
        counts[reason] = counts.get(reason, 0) + count
    index.counts.setdefault(label, {})
    index.progress |= {"block": number + 1, "rows": index.progress["rows"] + block.rows}
    write_index(folder, index)


def _origin(config: DataConfig, tokenizer: Any) -> dict[str, Any]:
    """What the shards are made of, as far as it can be told without reading it."""
    files: dict[str, int] = {}
    for source in config.parsed_sources:
        for path in [source.path, *_paths_within(source.options)]:
            if path is not None:
                files |= {str(file): file.stat().st_size for file in list_files(path)}
    return {
        "tokenizer": tokenizer_hash(tokenizer),
        "template": hashlib.sha256(tokenizer.chat_template.encode()).hexdigest()[:16],
        "files": files,
        "made_with": {name: version(name) for name in ("transformers", "tokenizers")},
    }


def _paths_within(options: Any) -> Iterator[str]:
    """The files that a builder reads."""
    if isinstance(options, dict):
        for key, value in options.items():
            if key == "path" and isinstance(value, str):
                yield value
            else:
                yield from _paths_within(value)
    elif isinstance(options, list | tuple):
        for value in options:
            yield from _paths_within(value)


def _open_folder(folder: Path, config: DataConfig, origin: dict[str, Any]) -> Index:
    """The index to go on from."""
    stable = {k: v for k, v in origin.items() if k != "made_with"}
    text = f"{config.fingerprint()} {sorted(stable.items())}"
    fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
    for torn in folder.glob(".*.part"):
        # What a killed build was writing.
        torn.unlink(missing_ok=True)
    if (folder / INDEX).exists():
        index = read_index(folder)
        if index.fingerprint != fingerprint:
            raise AllMemError(
                f"{folder} was built differently ({_difference(index, config, origin)}); name "
                "another output, or remove that folder"
            )
        return index
    try:
        folder.mkdir(parents=True, exist_ok=True)
        strangers = [f.name for f in folder.iterdir() if f.suffix != ".safetensors"]
    except OSError as error:
        raise AllMemError(f"cannot write to {folder}: {error.strerror}") from error
    if strangers:
        raise AllMemError(
            f"{folder} holds other files ({strangers[0]}, ...); name a new or empty folder"
        )
    progress = {"block": 0, "source": 0, "place": [0, 0], "row": 0, "rows": 0, "done": False}
    return Index(config.to_dict(), fingerprint, origin, [], {}, {}, progress, [])


def _difference(index: Index, config: DataConfig, origin: dict[str, Any]) -> str:
    """The first thing in which two builds differ."""
    new = config.to_dict()
    for key, value in index.config.items():
        if new.get(key) != value:
            shown = "" if isinstance(value, dict | list) else f": {value!r}, now {new.get(key)!r}"
            return key + shown
    for key in ("tokenizer", "template", "files"):
        if index.origin.get(key) != origin[key]:
            return f"the {key} changed"
    return "its configuration"
