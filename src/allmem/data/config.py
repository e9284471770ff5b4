"""What a user chooses about a data set: small frozen dataclasses, read from YAML.

Plain Python on purpose, as ``allmem.config``: nothing here imports torch or opens a file of data.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from allmem.errors import AllMemError, unknown_name
from allmem.schema import build_from, check_positive, read_yaml

__all__ = ["DataConfig", "FilterConfig", "SourceConfig", "config_from", "load_config"]

LENGTHS = {"short": 4096, "long": 24576}
"""Longest sample of each class in tokens (paper section 3.3.1: 4K and 24K)."""


@dataclass(frozen=True)
class SourceConfig:
    """Where rows come from: files, the hub, or a builder. Give one of ``path``, ``hub``, ``build``.

    Raises:
        AllMemError: on a value outside its range, naming the value and the remedy.
    """

    path: str | None = None
    """A file, a folder, or a pattern: .jsonl, .json, .parquet, .txt; .gz and .xz as well."""
    hub: str | None = None
    """A data set on the hub, streamed."""
    build: str | None = None
    """A builder of long samples (``allmem.data.builders``)."""
    name: str | None = None
    """In tables and in the samples' provenance; default: the path, data set or builder."""
    subset: str | None = None
    """Of a hub data set (its configuration name)."""
    split: str = "train"
    revision: str | None = None
    """Of a hub data set: a commit, for builds that can be repeated."""
    form: str | None = None
    """Of the rows (``allmem.data.adapters.FORMS``); default: recognised by their keys."""
    fields: dict[str, str] = field(default_factory=dict)
    """Names that the form knows -> names in the rows."""
    length: str | None = None
    """The length class of every sample; default: the smallest that it fits."""
    skip: int = 0
    """Rows to pass over at the beginning."""
    take: int | None = None
    """Rows to read at most; for a builder: samples to make."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of the builder."""

    def __post_init__(self) -> None:
        given = [n for n in ("path", "hub", "build") if getattr(self, n)]
        if len(given) != 1:
            raise AllMemError(f"give one of path, hub and build, not {len(given)} of them")
        if self.skip < 0:
            raise AllMemError(f"skip = {self.skip} must be 0 or more")
        check_positive(take=self.take)
        if self.options and not self.build:
            raise AllMemError("options are for builders; this source reads rows")
        if self.build and self.take is None:
            raise AllMemError(f"builder {self.build!r} needs take: how many samples to make")

    @property
    def label(self) -> str:
        if self.name:
            return self.name
        if self.hub:
            return self.hub if self.subset is None else f"{self.hub}/{self.subset}"
        if self.build:
            return self.build
        path = Path(str(self.path))
        return f"{path.parent.name}/{path.name}" if path.parent.name else path.name


@dataclass(frozen=True)
class FilterConfig:
    """Which conversations are left out. ``docs/data.md`` says what each filter is for."""

    min_tokens: int = 0
    """Of a whole sample, template included."""
    max_tokens: int | None = None
    """Longer samples are left out instead of cut."""
    min_response_chars: int = 1
    """Of the longest response."""
    max_repetition: float = 0.6
    """Largest share of a response's ten-character pieces that repeat an earlier one."""
    mojibake: Literal["drop", "fix", "keep"] = "drop"
    """Text that was decoded with the wrong encoding."""
    refuse: tuple[str, ...] = ()
    """Regular expressions; a conversation in which one is found is left out."""
    exclude: tuple[str, ...] = ()
    """Files of benchmark rows; conversations that share a long word sequence are left out."""

    def __post_init__(self) -> None:
        if self.min_tokens < 0 or self.min_response_chars < 0:
            raise AllMemError("min_tokens and min_response_chars must be 0 or more")
        check_positive(max_tokens=self.max_tokens)
        if not 0 < self.max_repetition <= 1:
            raise AllMemError(
                f"max_repetition = {self.max_repetition} must lie above 0 and up to 1"
            )


@dataclass(frozen=True)
class DataConfig:
    """A whole build. Equal configurations and equal inputs give equal shards, byte for byte.

    Raises:
        AllMemError: on a value outside its range, naming the value and the remedy.
    """

    model: str
    """Whose tokenizer and chat template: a hub name, a folder, a GGUF file or ``smollm2``."""
    sources: tuple[dict[str, Any], ...]
    """Each as a ``SourceConfig``; read in this order."""
    template: str | None = None
    """A file with a chat template in place of the tokenizer's own."""
    lengths: dict[str, int] = field(default_factory=lambda: dict(LENGTHS))
    """Length classes: the longest sample, and the length of a packed row, in tokens."""
    cut: Literal["middle", "left"] = "middle"
    """Where the document (or else the prompt) of a sample that is too long loses text."""
    long_response: Literal["skip", "cut"] = "skip"
    """What happens to a sample whose responses alone are too long."""
    responses: Literal["all", "last"] = "all"
    """Which of the assistant's turns are learned."""
    thinking: Literal["keep", "drop"] = "keep"
    pack: bool = True
    """Whether several samples share a row; else one row a sample."""
    duplicates: Literal["near", "exact", "keep"] = "exact"
    similarity: float = 0.8
    """Jaccard similarity of five-character pieces from which ``near`` calls two samples alike."""
    filters: dict[str, Any] = field(default_factory=dict)
    """As a ``FilterConfig``."""
    bad_rows: Literal["stop", "skip"] = "stop"
    """What an unreadable row does."""
    seed: int = 0
    """Of the builders."""
    shard_tokens: int = 4_000_000
    """A block of input is committed after so many tokens; a build loses one block at most."""
    block_rows: int = 10_000
    """Or after so many rows."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise AllMemError("sources is empty; name at least one")
        if not self.lengths:
            raise AllMemError("lengths is empty; name at least one class, such as short: 4096")
        for name, length in self.lengths.items():
            if not str(name).isidentifier():
                raise AllMemError(f"lengths: {name!r} must be a plain word")
            check_positive(**{name: length})
        if len(set(self.lengths.values())) != len(self.lengths):
            raise AllMemError(f"lengths: two classes have the same length in {self.lengths}")
        if not 0 < self.similarity <= 1:
            raise AllMemError(f"similarity = {self.similarity} must lie above 0 and up to 1")
        check_positive(shard_tokens=self.shard_tokens, block_rows=self.block_rows)
        for source in self.parsed_sources:
            if source.length is not None and source.length not in self.lengths:
                raise AllMemError(
                    f"source {source.label}: "
                    f"{unknown_name('length class', source.length, self.lengths)}"
                )
        _ = self.parsed_filters

    @property
    def parsed_sources(self) -> list[SourceConfig]:
        return [
            build_from(SourceConfig, source, f"source {i}")
            for i, source in enumerate(self.sources, 1)
        ]

    @property
    def parsed_filters(self) -> FilterConfig:
        return build_from(FilterConfig, self.filters, "filters")

    @property
    def classes(self) -> list[tuple[str, int]]:
        """(name, length), the shortest first."""
        return sorted(self.lengths.items(), key=lambda item: item[1])

    def to_dict(self) -> dict[str, Any]:
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def fingerprint(self) -> str:
        """A short hash of everything chosen."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def config_from(path: str | None, **overrides: Any) -> DataConfig:
    """A configuration from a YAML file, or from values alone.

    Raises:
        AllMemError: as ``load_config``.
    """
    if path is not None:
        return load_config(path, **overrides)
    given = {k: v for k, v in overrides.items() if v is not None}
    return build_from(DataConfig, given, "without a configuration file")


def load_config(path: str, **overrides: Any) -> DataConfig:
    """Read a YAML file.

    Args:
        overrides: in place of the file's values; those that are ``None`` are ignored.

    Raises:
        AllMemError: if the file is missing, not YAML, or holds what ``DataConfig`` refuses.
    """
    values = read_yaml(path)
    values |= {k: v for k, v in overrides.items() if v is not None}
    return build_from(DataConfig, values, path)
