"""``write_scope = evicted``: a memory that writes a token only once attention no longer sees it
(Artificial Hippocampus Networks, Fang et al. 2025, arXiv:2510.07318).

A query at t sees the W last tokens and the S first. So at t the token t - W is written, unless it
is a sink. A memory that writes in chunks finds a token again at the end of its chunk, so it takes
every token C earlier, in time for its eviction: t - (W - C).

Until its turn comes a token waits as a hidden state: ``W - C`` of them are part of the state. (The
window keeps keys and values of these tokens, but rotated, projected for attention and, in most
models, not much smaller.)

Letters: R rows, N slots of a call, D hidden size, L tokens that wait.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from allmem.config import WindowConfig
from allmem.errors import AllMemError
from allmem.layout import Layout
from allmem.memory.convolution import last_inputs
from allmem.memory.projections import Features, Written
from allmem.mixers.base import Capabilities, MemoryMixer, Mixer
from allmem.state import State

__all__ = ["EvictedMixer", "EvictedState"]


@dataclass
class EvictedState(State):
    """What waits, and what was written."""

    line: Tensor
    """[R, L, D], the hidden states of the last tokens, oldest first; zeros before the first."""
    memory: State


class EvictedMixer(Mixer):
    """Around a memory, of which it delays the writing.

    Args:
        hidden_size: D.
        memory: what is written.
        window: W and S of the attention beside it; ``layout.window``, if set, takes their place.

    Raises:
        AllMemError: if the window is smaller than the memory's lag.
    """

    def __init__(self, hidden_size: int, memory: MemoryMixer, window: WindowConfig) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.memory = memory
        self.window = window
        self.keep_fp32 = tuple(f"memory.{name}" for name in memory.keep_fp32)  # type: ignore[misc]
        self.initial_alpha = memory.initial_alpha
        self._waiting(Layout.dense(0, 1, 1, torch.device("cpu")))

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]
        return self.memory.capabilities

    def init_state(
        self,
        rows: int,
        dtype: torch.dtype,
        device: torch.device,
        window: WindowConfig | None = None,
        chunk: int | None = None,
    ) -> EvictedState:
        """As in the contract; ``window`` and ``chunk``, if given, are what the state will be read
        with."""
        waiting = self._waiting(Layout.dense(0, 1, 1, device).read_with(window, chunk))
        line = torch.zeros(rows, waiting, self.hidden_size, dtype=dtype, device=device)
        return EvictedState(line, self.memory.init_state(rows, dtype, device))

    def forward(
        self, x: Tensor, state: State, layout: Layout, features: Features | None = None
    ) -> tuple[Tensor, EvictedState]:
        assert isinstance(state, EvictedState)
        waiting = state.line.shape[1]
        assert waiting == self._waiting(layout), "a state is read with one window and one chunk"
        passing = torch.cat([state.line.to(x.dtype), x], dim=1)
        position = layout.positions - waiting
        keep = layout.valid & (position >= (layout.window or self.window).sinks)
        leaving = torch.where(keep[..., None], passing[:, : x.shape[1]], 0)
        y, memory = self.memory(x, state.memory, layout, features, Written(leaving, keep))
        return y, EvictedState(last_inputs(passing, waiting, layout), memory)

    def carry(self, old: State, new: State) -> EvictedState:
        """What was written; nothing of the old text waits."""
        assert isinstance(old, EvictedState)
        assert isinstance(new, EvictedState)
        return EvictedState(new.line, self.memory.carry(old.memory, new.memory))

    def state_bytes(self, tokens: int, dtype: torch.dtype) -> int:
        waiting = self._waiting(Layout.dense(0, 1, 1, torch.device("cpu")))
        own = waiting * self.hidden_size * dtype.itemsize
        return own + self.memory.state_bytes(tokens, dtype)

    def flops(self, tokens: int) -> int:
        return self.memory.flops(tokens)

    def flops_by_part(self, tokens: int) -> dict[str, int]:
        return self.memory.flops_by_part(tokens)

    def _waiting(self, layout: Layout) -> int:
        """L, for a call that is read with the window and chunk of ``layout``.

        Raises:
            AllMemError: if the memory finds a token again later than attention loses it.
        """
        window, lag = (layout.window or self.window).window, self.memory.lag(layout)
        if window < lag:
            raise AllMemError(
                f"window = {window} is smaller than the {lag} tokens until the memory finds again "
                f"what it wrote: tokens would be in no store; choose a window of {lag} at least"
            )
        return window - lag
