"""Sizes at which memories can be compared: as many parameters and as many bytes as another has.

A memory's options name the sizes that may change: ``state_sizes`` (head sizes, widths, slots)
decide the bytes of its state, ``parameter_sizes`` (the rank of its projections) the parameters
beside them. ``match`` solves for them. Counts are those of the mixer itself, built on the meta
device, so it knows of no mixer in particular, and no weight is ever made.

Projections stay full where the state's sizes alone suffice. Else they become low-rank and the rank
is solved for: at equal bytes a matrix memory has wider heads than the paper's network, and full
projections around wider heads have too many parameters. If what waits to be written is too large
even so, they are shared with the attention.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from allmem.choices import Limits
from allmem.config import WindowConfig
from allmem.errors import AllMemError
from allmem.memory.projections import AttentionWeights
from allmem.mixers.registry import MemoryKind, memory_kind
from allmem.mixers.size_search import Sizes, SizeSearch

__all__ = ["Counted", "Match", "Slot", "count", "match", "with_chunk"]


@dataclass(frozen=True)
class Slot:
    """Where a memory stands, and how its state is counted."""

    hidden_size: int
    attention: AttentionWeights
    """Shapes suffice."""
    window: WindowConfig
    chunk: int | None = None
    """C, for memories that write in chunks and whose options do not say otherwise."""
    dtype: torch.dtype = torch.float32
    """Of the hidden states."""
    tokens: int = 1 << 20
    """Read before the state is counted; of no consequence where it is constant."""


@dataclass(frozen=True)
class Counted:
    """How large a memory is."""

    parameters: int
    """Of one layer, with its alpha."""
    state_bytes: int
    """Of one layer and one sequence."""
    trainable: bool = True
    """Whether there is anything to train but alpha; else parameters are not compared."""


@dataclass(frozen=True)
class Match:
    """A memory with its sizes filled in."""

    mixer: str
    options: dict[str, Any]
    """All that differ from the mixer's own; for ``mixer_options`` or ``memory`` of a conversion."""
    sizes: dict[str, Any]
    """Those of the options that were solved for."""
    counted: Counted
    parameter_difference: float
    """More than was to be matched, as a share of it; 0 where parameters are not compared."""
    state_difference: float

    def score(self, limits: Limits) -> float:
        """The larger difference, as a share of its limit: at most 1 where both are within."""
        found = (
            (self.parameter_difference, limits.parameters),
            (self.state_difference, limits.state),
        )
        return max(abs(difference) / max(limit, 1e-9) for difference, limit in found)

    def within(self, limits: Limits) -> bool:
        """Whether both differences are within the limits."""
        return self.score(limits) <= 1


DEFAULT_LIMITS = Limits()


def count(mixer: str, options: Mapping[str, Any], slot: Slot) -> Counted:
    """How large a memory is in a slot.

    Args:
        options: those that differ from the mixer's own.

    Raises:
        AllMemError: on an unknown mixer or option, sizes that do not fit, or a mixer without a
            memory.
    """
    kind = _memory(mixer)
    chosen = kind.options(with_chunk(mixer, options, slot.chunk))
    with torch.device("meta"):
        made = kind.make(slot.hidden_size, chosen, slot.attention, slot.window)
    return Counted(
        sum(parameter.numel() for parameter in made.parameters()) + slot.hidden_size,
        made.state_bytes(slot.tokens, slot.dtype),
        made.capabilities.trainable,
    )


def match(
    mixer: str,
    slot: Slot,
    target: Counted,
    options: Mapping[str, Any] | None = None,
    limits: Limits = DEFAULT_LIMITS,
    *,
    start: Mapping[str, Any] | None = None,
    strict: bool = True,
) -> Match:
    """The sizes with which a memory has the parameters and the state of another one.

    Parameters are not compared if one of the two has nothing to train.

    Args:
        options: fixed: what they name is not solved for.
        limits: of the differences.
        start: sizes whose proportions are kept as far as possible, in place of the mixer's own.
        strict: refuse the nearest sizes if they are outside of the limits.

    Raises:
        AllMemError: on bad options; and, unless ``strict`` is false, where the limits cannot be
            met, naming the nearest sizes and how far away they are.
    """
    kind, fixed = _memory(mixer), dict(options or {})
    # Bad options are told as they are, not as sizes that cannot be matched.
    compares = target.trainable and count(mixer, fixed, slot).trainable
    tried: dict[str, Match | None] = {}

    def attempt(sizes: Sizes) -> Match | None:
        key = json.dumps(sizes, sort_keys=True)
        if key not in tried:
            tried[key] = _attempt(mixer, slot, target, {**fixed, **sizes}, sizes, compares)
        return tried[key]

    best: Match | None = None
    for form in _forms(kind, fixed, compares):
        chosen = kind.options({**with_chunk(mixer, fixed, slot.chunk), **form})
        if hasattr(chosen, "sized"):
            chosen = chosen.sized(slot.hidden_size, slot.attention.kv_heads)
        values = {name: getattr(chosen, name) for name in _free(kind, "state_sizes", fixed)}
        begin = {n: (start or {}).get(n, v) for n, v in values.items() if v is not None}
        ranks = _ranks(kind, fixed, chosen) if compares else []
        search = SizeSearch(
            attempt, lambda found: found.score(limits), form, begin, ranks, compares
        )
        found = search.run()
        if found is not None and (best is None or found.score(limits) < best.score(limits)):
            best = found
        if best is not None and best.within(limits):
            return best
    if best is None:
        raise AllMemError(f"{mixer}: no sizes fit together with {fixed}")
    if strict:
        raise AllMemError(_too_far(best, target, limits))
    return best


def _attempt(
    mixer: str, slot: Slot, target: Counted, options: dict[str, Any], sizes: Sizes, compares: bool
) -> Match | None:
    """A memory with these sizes; ``None`` if they do not fit together."""
    try:
        found = count(mixer, options, slot)
    except AllMemError:
        return None
    return Match(
        mixer,
        options,
        sizes,
        found,
        found.parameters / target.parameters - 1 if compares else 0.0,
        found.state_bytes / max(target.state_bytes, 1) - 1,
    )


def _memory(mixer: str) -> MemoryKind:
    kind = memory_kind(mixer)
    if kind is None:
        raise AllMemError(f"mixer {mixer!r} has no memory whose size could be matched")
    return kind


def with_chunk(mixer: str, options: Mapping[str, Any], chunk: int | None) -> dict[str, Any]:
    """Options with a chunk, for a memory that writes in chunks and whose options do not say which.

    Raises:
        AllMemError: on an unknown mixer or option.
    """
    kind = _memory(mixer)
    given = dict(options)
    fields = getattr(kind.config, "__dataclass_fields__", {})
    if chunk is None or "chunk" not in fields or given.get("chunk") is not None:
        return given
    # Of several memories in a layer none may write in chunks.
    return given if kind.options(given).chunk is None else {**given, "chunk": chunk}


def _free(kind: MemoryKind, sizes: str, fixed: Mapping[str, Any]) -> list[str]:
    """The sizes that may change."""
    return [name for name in getattr(kind.config, sizes, ()) if name not in fixed]


def _forms(kind: MemoryKind, fixed: Mapping[str, Any], compares: bool) -> list[dict[str, Any]]:
    """Options beside the sizes, in the order in which they are tried."""
    ranked = "rank" in _free(kind, "parameter_sizes", fixed)
    if not compares or not ranked or "projections" in {**kind.preset, **fixed}:
        return [{}]
    forms: list[dict[str, Any]] = [{}, {"projections": "lowrank"}]
    if {**kind.preset, **fixed}.get("write_scope") == "evicted":
        # Of these nothing waits beside the window but rates.
        forms.append({"projections": "shared"})
    return forms


def _ranks(kind: MemoryKind, fixed: Mapping[str, Any], chosen: Any) -> list[str]:
    """The sizes that decide the parameters beside the state's sizes."""
    full = getattr(chosen, "projections", None) == "full"
    return [n for n in _free(kind, "parameter_sizes", fixed) if not (n == "rank" and full)]


def _too_far(found: Match, target: Counted, limits: Limits) -> str:
    sizes = ", ".join(f"{name} = {value}" for name, value in found.sizes.items()) or "its own size"
    counted = found.counted
    return (
        f"{found.mixer} cannot be matched to {target.parameters:,} parameters and "
        f"{target.state_bytes:,} bytes of state in a layer: the nearest is {sizes}, with "
        f"{counted.parameters:,} parameters ({found.parameter_difference:+.1%}) and "
        f"{counted.state_bytes:,} bytes ({found.state_difference:+.1%}), where "
        f"{limits.parameters:.0%} and {limits.state:.0%} are allowed; fix fewer of its options, "
        "give the reference other sizes, or allow the difference"
    )
