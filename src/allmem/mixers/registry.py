"""Which mixers there are, and how a pattern names one for every layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from allmem.config import WindowConfig
from allmem.errors import AllMemError, unknown_name
from allmem.memory.projections import AttentionWeights
from allmem.mixers.base import MemoryMixer, Mixer
from allmem.mixers.evicted import EvictedMixer

if TYPE_CHECKING:
    from torch import nn

    from allmem.attention.rotary import Rotary
    from allmem.mixers.attention import AttentionMixer, AttentionShape

__all__ = [
    "AttentionKind",
    "MemoryKind",
    "Place",
    "attention_kind",
    "attention_names",
    "expand_pattern",
    "memory_kind",
    "mixer_kind",
    "mixer_names",
    "register_attention",
    "register_memory",
]

ATTENTION_ONLY = ("full", "window")
"""Layers without a memory: full attention as it was, or the window alone."""


@dataclass(frozen=True)
class MemoryKind:
    """A kind of memory that can stand beside a layer's window attention."""

    name: str
    config: type[Any]
    """Its options: a dataclass with ``from_dict`` and ``to_dict``, such as ``MemoryConfig``."""
    build: Callable[[int, Any, AttentionWeights], Mixer]
    """(hidden size, options, the attention beside it) -> the mixer."""
    preset: Mapping[str, Any] = field(default_factory=dict)
    """Options that have other defaults under this name than in ``config``."""

    def options(self, values: Mapping[str, Any]) -> Any:
        """The validated options for what a user chose.

        Raises:
            AllMemError: on an unknown option or a value outside its range.
        """
        return self.config.from_dict({**self.preset, **values})

    def make(
        self, hidden_size: int, options: Any, attention: AttentionWeights, window: WindowConfig
    ) -> Mixer:
        """The mixer of one layer.

        Args:
            hidden_size: D.
            options: from ``options``.
            window: of the attention beside it.

        Raises:
            AllMemError: if sizes do not fit, or the memory cannot write what leaves the window.
        """
        attention = dataclasses.replace(attention, window=window.window)
        mixer = self.build(hidden_size, options, attention)
        if getattr(options, "write_scope", "all") == "evicted":
            if not isinstance(mixer, MemoryMixer):
                raise AllMemError(
                    f"mixer {self.name!r}: write_scope = 'evicted' needs a mixer that derives from "
                    "allmem.mixers.MemoryMixer; choose write_scope = 'all'"
                )
            mixer = EvictedMixer(hidden_size, mixer, window)
        mixer.fusion = getattr(options, "fusion", "gate")
        mixer.read_scope = getattr(options, "read_scope", "all")
        return mixer


@dataclass(frozen=True)
class Place:
    """Where a layer stands among the layers of its mixer."""

    number: int
    """From 0."""
    layers: int
    """How many there are."""

    @classmethod
    def of(cls, layer: int, names: Sequence[str]) -> Self:
        """The place of a decoder layer, by the mixer names of all."""
        same = [i for i, name in enumerate(names) if name == names[layer]]
        return cls(same.index(layer), len(same))


@dataclass(frozen=True)
class AttentionKind:
    """A kind of attention that can stand in a layer in place of the window, with no memory beside
    it: a rule of what to keep of keys and values."""

    name: str
    config: type[Any]
    """Its options: a dataclass with ``from_dict`` and ``to_dict``."""
    build: Callable[
        [nn.Module, AttentionShape, Rotary | None, WindowConfig, Any, Place], AttentionMixer
    ]
    """(the pretrained attention, its sizes, its RoPE, the window that the model is converted with,
    options, the layer's place) -> the mixer."""

    def options(self, values: Mapping[str, Any]) -> Any:
        """The validated options for what a user chose.

        Raises:
            AllMemError: on an unknown option or a value outside its range.
        """
        return self.config.from_dict(dict(values))


_KINDS: dict[str, MemoryKind | AttentionKind] = {}


def register_memory(kind: MemoryKind) -> None:
    """Make a memory known by its name; registering the same one again changes nothing.

    Raises:
        AllMemError: if the name is taken by another kind.
    """
    _register(kind)


def register_attention(kind: AttentionKind) -> None:
    """As ``register_memory``, for an attention."""
    _register(kind)


def _register(kind: MemoryKind | AttentionKind) -> None:
    if kind.name in ATTENTION_ONLY or _KINDS.get(kind.name, kind) != kind:
        raise AllMemError(f"a mixer named {kind.name!r} is registered already; choose another name")
    _KINDS[kind.name] = kind


def mixer_names() -> list[str]:
    """Every name that a pattern may use."""
    return sorted([*ATTENTION_ONLY, *_KINDS])


def attention_names() -> list[str]:
    """Names of the attentions that were registered."""
    return sorted(name for name, kind in _KINDS.items() if isinstance(kind, AttentionKind))


def mixer_kind(name: str) -> MemoryKind | AttentionKind | None:
    """What was registered under a mixer's name; ``None`` for ``window`` and ``full``, which have no
    options.

    Raises:
        AllMemError: if there is no such mixer.
    """
    if name in ATTENTION_ONLY:
        return None
    if name not in _KINDS:
        raise AllMemError(unknown_name("mixer", name, mixer_names()))
    return _KINDS[name]


def memory_kind(name: str) -> MemoryKind | None:
    """The memory of a mixer, ``None`` for those that are an attention alone.

    Raises:
        AllMemError: if there is no such mixer.
    """
    kind = mixer_kind(name)
    return kind if isinstance(kind, MemoryKind) else None


def attention_kind(name: str) -> AttentionKind | None:
    """The attention of a mixer, ``None`` for ``full`` and for those that have the window.

    Raises:
        AllMemError: if there is no such mixer.
    """
    kind = mixer_kind(name)
    return kind if isinstance(kind, AttentionKind) else None


def expand_pattern(pattern: str | Sequence[str], layers: int) -> list[str]:
    """One mixer name per layer.

    Args:
        pattern: names separated by commas, each with an optional ``*count``, repeated until every
            layer has one: ``"allmem"``, ``"allmem*3,full"``; or a list of names.
        layers: number of decoder layers.

    Raises:
        AllMemError: on an unknown name or a pattern that does not fit the layers.
    """
    items = pattern.split(",") if isinstance(pattern, str) else list(pattern)
    names: list[str] = []
    for item in items:
        name, _, count = item.strip().partition("*")
        if count and not count.strip().isdigit():
            raise AllMemError(f"mixers: {item.strip()!r} is not of the form name or name*count")
        mixer_kind(name.strip())
        names += [name.strip()] * (int(count) if count else 1)
    if not names or layers % len(names):
        raise AllMemError(
            f"mixers: the pattern {pattern!r} names {len(names)} layers, which does not divide the "
            f"model's {layers}; give a pattern whose length divides {layers}"
        )
    return names * (layers // len(names))
