"""A memory's reads in the attention's context (``fusion = context``; Titans' memory as context,
arXiv:2501.00663, section 4.1).

    Context(x, m)_t: attention of the query of x_t to the keys and values of x_j and of m_j, for all
    j that the window lets it see

with m_j what the memory read for x_j. The pretrained attention projects m_j as if it were a hidden
state at the position of x_j; one softmax is over both. The reads of the sinks stay with the sinks.

It is the window attention of a text of 2 N tokens, m_1, x_1, m_2, x_2, ..., with W and S doubled:
every backend can compute it. Half of its queries are of no use and the projections are done three
times, so it costs several times what the window costs. The state has one ring more.

Letters: R rows, N slots of a call, D hidden size, Q query heads, K KV heads, E head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from allmem.attention import window_attention
from allmem.attention.state import RingState
from allmem.config import WindowConfig
from allmem.layout import Layout
from allmem.mixers.attention import WindowMixer
from allmem.state import State

__all__ = ["context_attention", "context_flops"]


def context_attention(
    attention: WindowMixer, x: Tensor, reads: Tensor, tokens: State, memory: State, layout: Layout
) -> tuple[Tensor, RingState]:
    """Context(x, m) and the ring of the memory's reads after the call.

    Args:
        x: [R, N, D], what enters the attention; ``reads``: [R, N, D], m.
        tokens: the attention's ring, of x; left as it is.
        memory: the ring of m.
    """
    assert isinstance(tokens, RingState)
    assert isinstance(memory, RingState)
    projecting = _Projecting(attention.core, attention.shape, attention.rotary, attention.window)
    projected = projecting.attend(reads, memory, layout)[1]
    assert isinstance(projected, _Projected)
    both = RingState(
        _interleaved(memory.keys, tokens.keys), _interleaved(memory.values, tokens.values)
    )
    y, after, _ = _Beside(attention, projected).attend(x, both, layout)
    assert isinstance(after, RingState)
    return y, RingState(*(t[:, :, 0::2].contiguous() for t in (after.keys, after.values)))


def context_flops(attention: WindowMixer, tokens: int) -> dict[str, int]:
    """What it costs: projections of m and, once more, of x; and twice as many keys for each query.
    Queries of m, whose results nothing depends on, are left out."""
    parts = attention.flops_by_part(tokens)
    factors = {"attention projections": 2, "attention scores": 2}
    return {name: factors[name] * flops for name, flops in parts.items()}


@dataclass
class _Projected(State):
    """Of a call's reads, after RoPE."""

    keys: Tensor
    """[R, K, N, E]; so are ``values``."""
    values: Tensor


class _Projecting(WindowMixer):
    """Keeps what the attention projects, and attends to nothing."""

    def mix(
        self, q: Tensor, k: Tensor, v: Tensor, state: State, layout: Layout, scale: float
    ) -> tuple[Tensor, State]:
        return v.new_zeros(*q.shape[:3], v.shape[3]), _Projected(k, v)


class _Beside(WindowMixer):
    """A window attention with other keys and values beside those of the call."""

    def __init__(self, like: WindowMixer, others: _Projected) -> None:
        super().__init__(like.core, like.shape, like.rotary, like.window, like.fixed)
        self.others = others

    def mix(
        self, q: Tensor, k: Tensor, v: Tensor, state: State, layout: Layout, scale: float
    ) -> tuple[Tensor, State]:
        assert isinstance(state, RingState)
        window = self.window_of(layout.window)
        q_sink = self.sink_queries(q, layout)
        y, after = window_attention(
            _interleaved(q, q),
            None if q_sink is None else _interleaved(q_sink, q_sink),
            _interleaved(self.others.keys, k),
            _interleaved(self.others.values, v),
            state,
            _doubled(layout),
            WindowConfig(2 * window.window, 2 * window.sinks),
            scale=scale,
        )
        return y[:, :, 1::2], after


def _interleaved(first: Tensor, second: Tensor) -> Tensor:
    """[R, K, N, E] twice: [R, K, 2 N, E], in turn."""
    return torch.stack([first, second], 3).flatten(2, 3)


def _doubled(layout: Layout) -> Layout:
    """Two slots for each; worked out once for all layers."""
    if "doubled" not in layout.memo:
        layout.memo["doubled"] = Layout.ragged(
            2 * layout.start, 2 * layout.lengths, layout.device, slots=2 * layout.slots
        )
    doubled: Layout = layout.memo["doubled"]
    return doubled
