"""A decoder layer's whole mixing: its attention, and beside it a memory.

    gate:       y = Attention(x) + alpha * Memory(x)
    stack:      y = Attention(x + alpha * Memory(x))
    context:    y = Attention(x) + alpha * (Context(x, Memory(x)) - Attention(x))

with alpha in R^D, at conversion zero unless the memory's ``initial_alpha`` says otherwise. The
first is AllMem's (paper section 3.2) and that of every memory unless its ``fusion`` says otherwise;
all three are in Titans (arXiv:2501.00663, section 4). Context is the attention with the memory's
reads among its keys and values (``allmem.mixers.context``). With alpha = 0 a converted layer is the
attention alone, exactly. With ``read_scope = lost`` it is that for the first W + S tokens of every
text, to which the window shows all that was before them: alpha is 0 for those.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from allmem.config import WindowConfig
from allmem.errors import AllMemError
from allmem.layout import Layout
from allmem.memory.projections import Features, Wanted
from allmem.mixers.attention import AttentionMixer, WindowMixer
from allmem.mixers.base import Capabilities, MemoryMixer, Mixer
from allmem.mixers.context import context_attention, context_flops
from allmem.mixers.evicted import EvictedMixer
from allmem.state import State

__all__ = ["LayerMixer", "LayerState"]


@dataclass
class LayerState(State):
    """Short-term and long-term memory of one layer."""

    attention: State
    memory: State | None
    context: State | None = None
    """Keys and values of the memory's reads, where they stand in the attention's context."""


class LayerMixer(Mixer):
    """The attention of a layer and its memory, if it has one.

    Raises:
        AllMemError: if the memory is to stand in the context of an attention without a window, or
            to be read by what it has lost.
    """

    def __init__(self, attention: AttentionMixer, memory: Mixer | None) -> None:
        super().__init__()
        if memory is not None and not isinstance(attention, WindowMixer):
            if memory.fusion == "context":
                raise AllMemError(
                    "fusion = 'context' needs window attention beside the memory; choose fusion = "
                    "'gate' or 'stack'"
                )
            if memory.read_scope == "lost":
                raise AllMemError(
                    "read_scope = 'lost' needs window attention beside the memory, since no other "
                    "loses what it read; choose read_scope = 'all'"
                )
        self.attention = attention
        self.memory = memory
        if memory is not None:
            start = torch.full((attention.shape.hidden_size,), memory.initial_alpha)
            self.alpha = nn.Parameter(start)

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
        context: State | None = None
        if self._in_context:
            context = self.attention.init_state(rows, dtype, device, window)
        return LayerState(attention, memory, context)

    def rows_of(self, pool: State, slots: Tensor, layout: Layout) -> LayerState:
        """Of both parts; a memory that looks into the attention's state finds copies there."""
        assert isinstance(pool, LayerState)
        attention, memory = self.attention, self.memory
        if memory is None:
            return LayerState(attention.rows_of(pool.attention, slots, layout), None)
        if self._in_context:
            return pool.select(slots)
        assert pool.memory is not None
        looked_into = memory.wants >= Wanted.LEAVING
        return LayerState(
            pool.attention.select(slots)
            if looked_into
            else attention.rows_of(pool.attention, slots, layout),
            memory.rows_of(pool.memory, slots, layout),
        )

    def periods(self, layout: Layout) -> frozenset[int] | None:
        """Of both parts."""
        attention = self.attention.periods(layout)
        if self.memory is None or attention is None:
            return attention
        memory = self.memory.periods(layout)
        return None if memory is None or self._in_context else attention | memory

    def state_before(
        self, rows: int, dtype: torch.dtype, device: torch.device, layout: Layout
    ) -> LayerState:
        """``init_state`` for the call that ``layout`` describes, the first of its rows."""
        if not (layout.final and isinstance(self.memory, MemoryMixer)) or self._in_context:
            return self.init_state(rows, dtype, device, layout.window, layout.chunk)
        attention = self.attention.init_state(rows, dtype, device, layout.window)
        return LayerState(attention, self.memory.passing_state(rows, dtype, device, layout))

    def forward(
        self, x: Tensor, state: State, layout: Layout, features: Features | None = None
    ) -> tuple[Tensor, LayerState]:
        assert isinstance(state, LayerState)
        if self.memory is None or (layout.final and not self._speaks(layout)):
            y, attention, _ = self.attention.attend(x, state.attention, layout)
            return y, LayerState(attention, state.memory, state.context)
        if self.memory.fusion == "stack":
            remembered, memory = self.memory(x, state.memory, layout)
            y, attention, _ = self.attention.attend(
                x + self.said(remembered, x, layout), state.attention, layout
            )
            return y, LayerState(attention, memory)
        # The state is consumed, but the context is made of it as it was before the call.
        before = state.attention.clone() if self._in_context else state.attention
        y, attention, features = self.attention.attend(
            x,
            state.attention,
            layout,
            self.memory.wants,
        )
        remembered, memory = self.memory(x, state.memory, layout, features)
        if not self._in_context:
            return y + self.said(remembered, y, layout), LayerState(attention, memory)
        assert isinstance(self.attention, WindowMixer)
        assert state.context is not None
        seen, context = context_attention(
            self.attention, x, remembered.to(x.dtype), before, state.context, layout
        )
        return y + self.said(seen - y, y, layout), LayerState(attention, memory, context)

    @property
    def _in_context(self) -> bool:
        return self.memory is not None and self.memory.fusion == "context"

    def said(self, remembered: Tensor, beside: Tensor, layout: Layout) -> Tensor:
        """alpha times what a memory gave, for those tokens that hear it; in the dtype of what it is
        added to."""
        said = self.alpha.to(beside.dtype) * remembered.to(beside.dtype)
        if self._whole(layout) == 0 or not layout.starts_before(self._whole(layout)):
            return said
        return said.where(self.hears(layout)[..., None], 0)

    def hears(self, layout: Layout) -> Tensor:
        """[R, N] bool: which tokens hear what the memory says (``read_scope``)."""
        return layout.positions >= self._whole(layout)

    def _whole(self, layout: Layout) -> int:
        """How many first tokens of a text do not hear the memory."""
        if self.memory is None or self.memory.read_scope == "all":
            return 0
        assert isinstance(self.attention, WindowMixer)
        window = self.attention.window_of(layout.window)
        return window.window + window.sinks

    def _speaks(self, layout: Layout) -> bool:
        """Whether some token of the call may hear the memory."""
        whole = self._whole(layout)
        return whole == 0 or layout.reaches_beyond(whole - 1)

    def state_bytes(self, tokens: int, dtype: torch.dtype) -> int:
        memory = self.memory.state_bytes(tokens, dtype) if self.memory is not None else 0
        rings = 2 if self._in_context else 1
        return rings * self.attention.state_bytes(tokens, dtype) + memory

    def flops(self, tokens: int) -> int:
        return sum(self.flops_by_part(tokens).values())

    def flops_by_part(self, tokens: int) -> dict[str, int]:
        parts = Counter(self.attention.flops_by_part(tokens))
        if self.memory is not None:
            parts.update(self.memory.flops_by_part(tokens))
        if self._in_context:
            assert isinstance(self.attention, WindowMixer)
            parts.update(context_flops(self.attention, tokens))
        return dict(parts)
