"""A Triton kernel for the attention of one token to its window: the same results as
``allmem.attention.decode``, with the keys and values of a ring read once, where they lie.

    window_attention   writes the token into its ring and reads the ring
    chosen             whether it is to compute a call: if it was asked for and can

Forward only. Importing this package does not import triton. Nothing reads a number back from the
device, so a call can be captured in a CUDA graph. Scores, softmax and sums are fp32, in float64 for
float64, which only triton's interpreter computes.

Letters: R rows, P slots of a pool of rows, Q query heads, K KV heads, E head size of keys, Ev of
values, S sinks, W window.
"""

from __future__ import annotations

from torch import Tensor

from allmem.attention.kernels.choice import chosen
from allmem.attention.state import RingState
from allmem.config import WindowConfig
from allmem.layout import Layout

__all__ = ["chosen", "window_attention"]


def window_attention(
    q: Tensor,
    q_sink: Tensor | None,
    k: Tensor,
    v: Tensor,
    state: RingState,
    layout: Layout,
    window: WindowConfig,
    *,
    scale: float,
) -> tuple[Tensor, RingState]:
    """As ``allmem.attention.window_attention`` for N = 1, where every row takes its token.

    Args:
        q, q_sink, k, v: [R, heads, 1, size], of any strides.
        state: contiguous, written in place; its rows may lie in a pool (``state.at``), of which
            other slots are neither read nor written.
        layout: ``full``.
    """
    from allmem.attention.kernels.triton_token import window_token

    slots = None if state.at is None else state.at.index
    rings, start = (state.keys, state.values), layout.start_on_device
    return window_token(q, q_sink, k, v, *rings, start, slots, window, scale), state
