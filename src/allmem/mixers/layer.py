"""A decoder layer's whole mixing: its attention, and beside it a memory.

    y = Attention(x) + alpha * Memory(x)            alpha in R^D, zero at conversion

(paper section 3.2). With alpha = 0 a converted layer is the attention alone, exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from allmem.config import WindowConfig
from allmem.layout import Layout
from allmem.memory.projections import Features
from allmem.mixers.attention import AttentionMixer
from allmem.mixers.base import Capabilities, Mixer
from allmem.mixers.evicted import EvictedMixer
from allmem.state import State

__all__ = ["LayerMixer", "LayerState"]


@dataclass
class LayerState(State):
    """Short-term and long-term memory of one layer."""

    attention: State
    memory: State | None


class LayerMixer(Mixer):
    """The attention of a layer and, in parallel, its memory if it has one."""

    def __init__(self, attention: AttentionMixer, memory: Mixer | None) -> None:
        super().__init__()
        self.attention = attention
        self.memory = memory
        if memory is not None:
            self.alpha = nn.Parameter(torch.zeros(attention.shape.hidden_size))

    def slow_parameters(self) -> dict[str, nn.Parameter]:
        """What distillation trains of a layer, by name: all but the attention's own."""
        return {n: p for n, p in self.named_parameters() if not n.startswith("attention.")}

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]
        """The weaker promise of the two."""
        parts = [self.attention.capabilities]
        if self.memory is not None:
            parts.append(self.memory.capabilities)
        return Capabilities(
            constant_state=all(p.constant_state for p in parts),
            trainable=any(p.trainable for p in parts),
        )

    def init_state(
        self,
        rows: int,
        dtype: torch.dtype,
        device: torch.device,
        window: WindowConfig | None = None,
        chunk: int | None = None,
    ) -> LayerState:
        """As in the contract; ``window`` and ``chunk``, if given, are what the state will be read
        with."""
        attention = self.attention.init_state(rows, dtype, device, window)
        memory: State | None = None
        if isinstance(self.memory, EvictedMixer):
            memory = self.memory.init_state(rows, dtype, device, window, chunk)
        elif self.memory is not None:
            memory = self.memory.init_state(rows, dtype, device)
        return LayerState(attention, memory)

    def forward(
        self, x: Tensor, state: State, layout: Layout, features: Features | None = None
    ) -> tuple[Tensor, LayerState]:
        assert isinstance(state, LayerState)
        shares = self.memory is not None and self.memory.reads_features
        y, attention, features = self.attention.attend(x, state.attention, layout, shares)
        if self.memory is None:
            return y, LayerState(attention, None)
        remembered, memory = self.memory(x, state.memory, layout, features)
        return y + self.alpha.to(y.dtype) * remembered.to(y.dtype), LayerState(attention, memory)

    def state_bytes(self, tokens: int, dtype: torch.dtype) -> int:
        memory = self.memory.state_bytes(tokens, dtype) if self.memory is not None else 0
        return self.attention.state_bytes(tokens, dtype) + memory

    def flops(self, tokens: int) -> int:
        return sum(self.flops_by_part(tokens).values())

    def flops_by_part(self, tokens: int) -> dict[str, int]:
        memory = self.memory.flops_by_part(tokens) if self.memory is not None else {}
        return {**self.attention.flops_by_part(tokens), **memory}
