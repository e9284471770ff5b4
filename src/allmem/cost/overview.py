"""A converted model in numbers: its layers, what conversion added, and what a text leaves behind.

Closed forms over the mixers' own; the model may stand on the meta device.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import groupby

import torch

from allmem.cost.flops import OriginalAttention
from allmem.mixers.attention import AttentionMixer, WindowMixer
from allmem.mixers.compacting import CompactingMixer
from allmem.models.modeling import AllMemForCausalLM

__all__ = ["LayerGroup", "Overview"]


@dataclass(frozen=True)
class LayerGroup:
    """Neighbouring layers that are alike."""

    first: int
    last: int
    mixer: str
    window: int | None
    """Keys that a token sees beside the sinks, on the device; ``None`` for a layer that sees
    everything."""
    sinks: int
    added: int
    """Parameters that conversion added to each."""
    state_bytes: int | None
    """Of each; ``None`` where it grows with the text."""


@dataclass(frozen=True)
class Overview:
    """What ``allmem info`` shows."""

    model: AllMemForCausalLM
    dtype: torch.dtype
    """In which the state would be kept."""

    def layers(self) -> list[LayerGroup]:
        """The decoder layers, alike ones together."""
        rows = []
        for mixed, name in zip(self.model.mixers(), self.model.config.layers or [], strict=True):
            window, sinks = _sees(mixed.attention)
            added = sum(p.numel() for p in mixed.slow_parameters().values())
            constant = mixed.capabilities.constant_state
            size = mixed.state_bytes(1, self.dtype) if constant else None
            rows.append((mixed.layer, (name, window, sinks, added, size)))
        groups = []
        for kind, members in groupby(rows, key=lambda row: row[1]):
            numbers = [layer for layer, _ in members]
            groups.append(LayerGroup(numbers[0], numbers[-1], *kind))
        return groups

    def base_parameters(self) -> int:
        """Of the original model."""
        return sum(p.numel() for p in self.model.parameters()) - self.added_parameters()

    def added_parameters(self) -> int:
        """What distillation trains."""
        return sum(self.added_by_part().values())

    def added_by_part(self) -> dict[str, int]:
        """Added parameters by the part of the memory that they belong to."""
        parts: Counter[str] = Counter()
        for name, parameter in self.model.memory_parameters().items():
            # layers.3.memory.unit.projections.q.weight, layers.3.alpha
            path = [step for step in name.split(".")[2:] if step not in ("memory", "unit")]
            parts[path[0]] += parameter.numel()
        return dict(parts.most_common())

    def state_bytes(self, tokens: int) -> int:
        """What the converted model keeps of a text."""
        return sum(mixed.state_bytes(tokens, self.dtype) for mixed in self.model.mixers())

    def full_bytes(self, tokens: int) -> int:
        """The key-value cache of the original model: what each of its layers saw, so no more than
        their own window in layers that were local already."""
        originals = map(OriginalAttention, self.model.mixers())
        return sum(layer.state_bytes(tokens, self.dtype) for layer in originals)

    def break_even(self) -> int | None:
        """The shortest text of which the original's cache is at least as large as the state;
        ``None`` if there is none, since every layer kept its full attention."""
        low, high = 0, 1
        while self.full_bytes(high) < self.state_bytes(high):
            low, high = high, 2 * high
            if high > 2**40:
                return None
        if all(mixed.capabilities.constant_state is False for mixed in self.model.mixers()):
            return None
        while high - low > 1:
            middle = (low + high) // 2
            if self.full_bytes(middle) < self.state_bytes(middle):
                low = middle
            else:
                high = middle
        return high


def _sees(attention: AttentionMixer) -> tuple[int | None, int]:
    """Window and sinks of a layer."""
    if isinstance(attention, WindowMixer):
        return attention.window.window, attention.window.sinks
    if isinstance(attention, CompactingMixer):
        sizes = attention.sizes(attention.window)
        return sizes.slots - sizes.sinks, sizes.sinks
    return None, 0
