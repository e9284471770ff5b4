"""Mixers of one's own in an arena: registered by the modules that a file names, and checked, since
one that looks ahead would win."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module

from allmem.arena.config import ArenaConfig
from allmem.errors import AllMemError, first_line
from allmem.memory.projections import AttentionWeights
from allmem.mixers.base import Mixer
from allmem.mixers.conformance import check_conformance
from allmem.mixers.matching import with_chunk
from allmem.mixers.registry import MemoryKind, memory_kind

__all__ = ["check_mixers", "import_modules"]

HIDDEN, CHUNK, ATTENTION = 24, 4, AttentionWeights(query_heads=4, kv_heads=2, head_dim=8)
"""At which sizes a mixer is checked: those at which the suite takes seconds."""


def import_modules(arena: ArenaConfig) -> None:
    """Let mixers of one's own register themselves.

    Raises:
        AllMemError: if a module cannot be imported.
    """
    for name in arena.modules:
        try:
            import_module(name)
        except ImportError as error:
            raise AllMemError(f"modules: cannot import {name!r}: {first_line(error)}") from error


def check_mixers(names: Iterable[str]) -> None:
    """Hold the conformance suite over the memories among ``names`` that are not allmem's own, with
    their default options.

    Raises:
        AllMemError: naming the first mixer that breaks the contract, the property and the smallest
            example at which it does not hold.
    """
    for name in sorted(set(names)):
        kind = memory_kind(name)
        if kind is None or kind.build.__module__.partition(".")[0] == "allmem":
            continue
        failures = check_conformance(_maker(kind), HIDDEN)
        if failures:
            first = failures[0]
            raise AllMemError(
                f"mixer {name!r} does not keep the contract of a mixer: {first.property}: "
                f"{first.message} ({len(failures)} properties do not hold; "
                "allmem.mixers.conformance.check_conformance names all)"
            )


def _maker(kind: MemoryKind) -> Callable[[], Mixer]:
    options = kind.options(with_chunk(kind.name, {}, CHUNK))
    return lambda: kind.build(HIDDEN, options, ATTENTION)
