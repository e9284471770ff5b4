"""One token for every row: the step of generation, in constant work and memory.

The token is written first and then all S + W slots are scored as they lie: softmax does not mind
their order. No loop over rows, no allocation that grows, no wait for the device.

Letters: R rows, Q query heads, K KV heads, E head size of keys, Ev of values, S sinks, W window.
"""

from __future__ import annotations

import torch
from torch import Tensor

from allmem.attention.state import RingState
from allmem.config import WindowConfig
from allmem.layout import Layout

__all__ = ["window_attention"]


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
    """As ``allmem.attention.window_attention`` for N = 1; rows may take no token."""
    state = state.write_one(k, v, layout, window)
    keys, values = state.keys.to(k.dtype), state.values.to(v.dtype)
    grouped = q.unflatten(1, (k.shape[1], -1)).squeeze(3)  # [R, K, G, E]
    if q_sink is None or window.sinks == 0:
        scores = grouped @ keys.mT
    else:
        S = window.sinks
        sink = q_sink.unflatten(1, (k.shape[1], -1)).squeeze(3) @ keys[:, :, :S].mT
        scores = torch.cat([sink, grouped @ keys[:, :, S:].mT], -1)
    size = window.sinks + window.window
    if bool((layout.start < size - 1).any()):
        # Slots fill from the first to the last, so a slot is written once t has reached its number.
        written = torch.arange(size, device=layout.device) <= layout.start_on_device[:, None]
        scores = scores.masked_fill(~written[:, None, None], -torch.inf)
    accumulator = torch.promote_types(scores.dtype, torch.float32)
    weights = torch.softmax(scores * scale, -1, dtype=accumulator).to(values.dtype)
    return (weights @ values).flatten(1, 2)[:, :, None], state
