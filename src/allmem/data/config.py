"""What a user chooses about a data set: small frozen dataclasses, read from YAML.

Plain Python on purpose, as ``allmem.config``: nothing here imports torch or opens a file of data.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from allmem.errors import AllMemError, unknown_name

__all__ = ["DataConfig", "FilterConfig", "SourceConfig", "config_from", "load_config"]

Config = TypeVar("Config")

LENGTHS = {"short": 4096, "long": 24576}
"""Longest sample of each class in tokens (paper section 3.3.1: 4K and 24K)."""


def build_from(cls: type[Config], values: Any, where: str) -> Config:
    """A dataclass from a dictionary, refusing keys it does not know and values of another type.

    Args:
        where: what the dictionary is, for messages ("source 2").
    """
    if not isinstance(values, dict):
        raise AllMemError(f"{where}: expected keys and values, found {values!r}")
    hints = get_type_hints(cls)
    names = {f.name for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    for key, value in values.items():
        if key not in names:
            raise AllMemError(f"{where}: {unknown_name('key', str(key), names)}")
        if not _fits(value, hints[key]):
            raise AllMemError(f"{where}: {key} = {value!r} must be {_spoken(hints[key])}")
    needed = [
        f.name
        for f in dataclasses.fields(cls)  # type: ignore[arg-type]
        if f.init
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
        and f.name not in values
    ]
    if needed:
        raise AllMemError(f"{where}: {', '.join(needed)} must be given")
    plain = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    try:
        return cls(**plain)
    except AllMemError as error:
        raise AllMemError(f"{where}: {error}") from None


def _fits(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if origin is tuple:
        return isinstance(value, list | tuple) and all(_fits(v, get_args(hint)[0]) for v in value)
    if origin is dict:
        kind = get_args(hint)[1]
        return isinstance(value, dict) and all(_fits(v, kind) for v in value.values())
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if dataclasses.is_dataclass(hint):
        return isinstance(value, dict | hint)
    return isinstance(value, hint)


def _spoken(hint: Any) -> str:
    """A type in words."""
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, get_args(hint)))
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_spoken(part) for part in get_args(hint))
    if get_origin(hint) is tuple:
        return "a list"
    if get_origin(hint) is dict or dataclasses.is_dataclass(hint):
        return "keys and values"
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return names.get(hint, "empty")


def _positive(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not value > 0:
            raise AllMemError(f"{name} = {value!r} must be positive")


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
        _positive(take=self.take)
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
        _positive(max_tokens=self.max_tokens)
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
            _positive(**{name: length})
        if len(set(self.lengths.values())) != len(self.lengths):
            raise AllMemError(f"lengths: two classes have the same length in {self.lengths}")
        if not 0 < self.similarity <= 1:
            raise AllMemError(f"similarity = {self.similarity} must lie above 0 and up to 1")
        _positive(shard_tokens=self.shard_tokens, block_rows=self.block_rows)
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
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AllMemError(f"there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise AllMemError(f"cannot read {path}: {error}") from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise AllMemError(f"{path} is not YAML: {reason}") from error
    if isinstance(values, dict):
        values |= {k: v for k, v in overrides.items() if v is not None}
    return build_from(DataConfig, values, path)
