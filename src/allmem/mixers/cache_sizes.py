"""KV policies at equal bytes: how many slots each may have.

Bytes are those on the device that computes: what ``blocks`` keeps on the CPU is told beside them,
and the blocks that it fetches for a token count. The closed forms are the mixers' own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from allmem.config import WindowConfig
from allmem.errors import AllMemError, unknown_name
from allmem.mixers.attention import AttentionMixer, AttentionShape, WindowMixer
from allmem.mixers.registry import AttentionKind, Place, attention_kind, attention_names

__all__ = ["EqualCache", "equal_caches"]

TOLERANCE = 0.05
"""Largest difference of bytes, as a share, at which caches count as equal."""
LONG = 1 << 40
"""Tokens after which no cache grows any more on the device."""


@dataclass(frozen=True)
class EqualCache:
    """One policy's share of the bytes."""

    name: str
    slots: int
    """For a policy ``mixer_options[name]["slots"]``; for the window W + S."""
    bytes: int
    """On the device, of one layer and one sequence."""


def equal_caches(
    target: int,
    shape: AttentionShape,
    dtype: torch.dtype,
    *,
    sinks: int,
    layers: int = 2,
    names: Sequence[str] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, EqualCache]:
    """The largest cache of each policy that takes no more than the bytes of another layer.

    Args:
        target: bytes of one layer and one sequence, such as ``MixedAttention.state_bytes`` of a
            layer with a window and a memory.
        shape: of the attention.
        dtype: of keys and values.
        sinks: S.
        layers: how many a policy has, for those that deal the text out to their layers.
        names: policies, ``window`` among them; ``None`` for all.
        options: by policy, those that are not left to their defaults; without ``slots``.

    Raises:
        AllMemError: on an unknown policy, or if one cannot come within 5 % of the bytes.
    """
    known = ["window", *attention_names()]
    found = {}
    for name in known if names is None else names:
        if name not in known:
            raise AllMemError(unknown_name("KV policy", name, known))
        chosen = {"sinks": sinks, **(options or {}).get(name, {})}
        found[name] = _equal(name, target, shape, dtype, layers, chosen)
    return found


def _equal(
    name: str,
    target: int,
    shape: AttentionShape,
    dtype: torch.dtype,
    layers: int,
    options: dict[str, Any],
) -> EqualCache:
    """Bytes grow with the slots, but for the rounding to whole blocks."""
    kind = None if name == "window" else attention_kind(name)
    slot = 2 * shape.kv_heads * shape.head_dim * dtype.itemsize

    def size(slots: int) -> int:
        return _mixer(kind, shape, slots, layers, options).device_bytes(LONG, dtype)

    low, high = 1, max(1, target // slot) + 1
    while high - low > 1:
        middle = (low + high) // 2
        try:
            fits = size(middle) <= target
        except AllMemError:
            # Too few slots for the policy.
            fits = True
        low, high = (middle, high) if fits else (low, middle)
    cache = EqualCache(name, low, size(low))
    if abs(cache.bytes - target) > TOLERANCE * target:
        raise AllMemError(
            f"{name}: no cache has {target:,} bytes a layer within {TOLERANCE:.0%}; the nearest, "
            f"{cache.slots:,} slots, has {cache.bytes:,}; give more bytes, or a smaller block"
        )
    return cache


def _mixer(
    kind: AttentionKind | None,
    shape: AttentionShape,
    slots: int,
    layers: int,
    options: dict[str, Any],
) -> AttentionMixer:
    """A mixer to ask for its sizes, around nothing."""
    if kind is None:
        sinks = options["sinks"]
        return WindowMixer(nn.Module(), shape, None, WindowConfig(slots - sinks, sinks))
    chosen = kind.options({**options, "slots": slots})
    return kind.build(nn.Module(), shape, None, WindowConfig(1), chosen, Place(0, layers))
