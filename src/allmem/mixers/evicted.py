"""``write_scope = evicted``: a memory that writes a token only once attention no longer sees it
(Artificial Hippocampus Networks, Fang et al. 2025, arXiv:2510.07318).

A query at t sees the W last tokens and the S first. So at t the token t - W is written, unless it
is a sink. A memory that writes in chunks finds a token again at the end of its chunk, so it takes
every token C earlier, in time for its eviction: t - (W - C).

Until its turn comes a token waits: L = W - C of them are part of the state. With full projections a
token waits as its hidden state, with those of low rank r as what they and the rates make of it on
the way, 2 r numbers and one or a few for each head, if these are fewer bytes. With ``projections =
shared`` keys and values are the attention's own, and so is what their trained differences are made
of: they are taken from the window as it loses them, turned back to before RoPE, and what waits is
for the rates alone. A memory that writes in chunks cannot have them: it writes a token before the
window loses it.

Letters: R rows, N slots of a call, D hidden size, L tokens that wait, F numbers of each.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from allmem.config import WindowConfig
from allmem.errors import AllMemError
from allmem.layout import Layout
from allmem.memory.convolution import last_inputs
from allmem.memory.projections import Features, Wanted, Written
from allmem.memory.state import accumulation_dtype
from allmem.mixers.base import Capabilities, MemoryMixer, Mixer
from allmem.state import State

__all__ = ["EvictedMixer", "EvictedState"]

ANY = Layout.dense(0, 1, 1, torch.device("cpu"))
"""Of a call that asks for no other window or chunk than are configured."""


@dataclass
class EvictedState(State):
    """What waits, and what was written."""

    line: Tensor
    """[R, L, F], what is kept of the last tokens, oldest first; zeros before the first."""
    memory: State


class EvictedMixer(Mixer):
    """Around a memory, of which it delays the writing.

    Args:
        hidden_size: D.
        memory: what is written.
        window: W and S of the attention beside it; ``layout.window``, if set, takes their place.

    Raises:
        AllMemError: if the window is smaller than the memory's lag, or the memory shares the
            attention's projections and has a lag.
    """

    def __init__(self, hidden_size: int, memory: MemoryMixer, window: WindowConfig) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.memory = memory
        self.window = window
        self.keep_fp32 = tuple(f"memory.{name}" for name in memory.keep_fp32)  # type: ignore[misc]
        self.initial_alpha = memory.initial_alpha
        self._waiting(ANY)
        if memory.wants >= Wanted.FEATURES:
            if lag := memory.lag(ANY):
                raise AllMemError(
                    f"a memory that writes in chunks (of {lag} tokens) with write_scope = "
                    "'evicted' finds tokens before the window loses their keys and values, so "
                    "projections = 'shared' cannot be had with it; choose 'full' or 'lowrank'"
                )
            self.wants = Wanted.LEAVING

    def _line(self, dtype: torch.dtype) -> tuple[int, torch.dtype]:
        """F, and the dtype of what waits, for hidden states of ``dtype``: of these or of what their
        maps make of them, whichever is smaller."""
        size, wide = sum(m.size for m in self.memory.narrowings()), accumulation_dtype(dtype)
        if 0 < size * wide.itemsize < self.hidden_size * dtype.itemsize:
            return size, wide
        return self.hidden_size, dtype

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
        size, kept_in = self._line(dtype)
        line = torch.zeros(rows, waiting, size, dtype=kept_in, device=device)
        return EvictedState(line, self.memory.init_state(rows, dtype, device))

    def forward(
        self, x: Tensor, state: State, layout: Layout, features: Features | None = None
    ) -> tuple[Tensor, EvictedState]:
        assert isinstance(state, EvictedState)
        waiting = state.line.shape[1]
        assert waiting == self._waiting(layout), "a state is read with one window and one chunk"
        # As the state was made, whatever autocast does.
        maps = self.memory.narrowings() if state.line.shape[-1] != self.hidden_size else []
        coming = x
        if maps:
            coming = torch.cat([m.narrow(x).to(state.line.dtype) for m in maps], -1)
        passing = torch.cat([state.line.to(coming.dtype), coming], dim=1)
        position = layout.positions - waiting
        keep = layout.valid & (position >= (layout.window or self.window).sinks)
        leaving = torch.where(keep[..., None], passing[:, : x.shape[1]], 0)
        written = Written(leaving, keep)
        if maps:
            pieces = leaving.split([m.size for m in maps], -1)
            written = Written(None, keep, dict(zip(maps, pieces, strict=True)))
        y, memory = self.memory(x, state.memory, layout, self._lost(features, x), written)
        return y, EvictedState(last_inputs(passing, waiting, layout), memory)

    def _lost(self, features: Features | None, x: Tensor) -> Features | None:
        """The attention's features, with keys and values of the tokens that the window loses."""
        if self.wants < Wanted.LEAVING:
            return features
        if features is None or features.leaving is None:
            raise AllMemError(
                "write_scope = 'evicted' with projections = 'shared' goes on with what a window "
                "loses: the memory has to stand beside one, alone"
            )
        leaving = features.leaving
        k, v = (
            torch.where(leaving.leaves[:, None, :, None], t, 0).transpose(1, 2).flatten(2)
            for t in (leaving.k, leaving.v)
        )
        return dataclasses.replace(features, k=k.to(x.dtype), v=v.to(x.dtype))

    def carry(self, old: State, new: State) -> EvictedState:
        """What was written; nothing of the old text waits."""
        assert isinstance(old, EvictedState)
        assert isinstance(new, EvictedState)
        return EvictedState(new.line, self.memory.carry(old.memory, new.memory))

    def state_bytes(self, tokens: int, dtype: torch.dtype) -> int:
        size, kept_in = self._line(dtype)
        return self._waiting(ANY) * size * kept_in.itemsize + self.memory.state_bytes(tokens, dtype)

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
