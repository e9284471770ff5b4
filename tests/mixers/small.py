"""Memories small enough to be checked in float64, by their names."""

from __future__ import annotations

from typing import Any

import torch

from allmem.config import WindowConfig
from allmem.memory.projections import AttentionWeights
from allmem.mixers.base import Mixer
from allmem.mixers.registry import memory_kind

__all__ = ["ATTENTION", "HIDDEN", "SIZES", "WINDOW", "small_memory"]

HIDDEN = 24
ATTENTION = AttentionWeights(query_heads=4, kv_heads=2, head_dim=8)
WINDOW = WindowConfig(window=7, sinks=2)
SIZES: dict[str, Any] = {"key_dim": 6, "value_dim": 5, "block": 5, "rank": 3}


def small_memory(name: str, **options: Any) -> Mixer:
    """The memory of this name at small sizes, with the same starting values at every call."""
    torch.manual_seed(1)
    kind = memory_kind(name)
    assert kind is not None
    return kind.make(HIDDEN, kind.options({**SIZES, **options}), ATTENTION, WINDOW)
