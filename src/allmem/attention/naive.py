"""The definition of both attentions, row by row with explicit masks: the oracle of every test.

Same signatures as the fast twins, same states; slow, quadratic in memory, and meant to be read.
"""

from __future__ import annotations

import torch
from torch import Tensor

from allmem.attention.state import GrowingState, RingState
from allmem.config import WindowConfig
from allmem.layout import Layout

__all__ = ["full_attention", "window_attention", "window_mass"]


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
    """As ``allmem.attention.window_attention``."""
    S, W = window.sinks, window.window
    q_sink = q if q_sink is None else q_sink
    out = torch.zeros(*q.shape[:3], v.shape[3], dtype=q.dtype, device=q.device)
    state = state.clone()
    for row in range(layout.rows):
        start, count = int(layout.start[row]), int(layout.lengths[row])
        end = start + count
        # Every key that any query of the call can see, with its position: first what the ring
        # still holds, then the new ones.
        kept = [p for p in range(start) if p < S or start - p <= W]
        slots = [_slot(p, S, W) for p in kept]
        keys = torch.cat([state.keys[row][:, slots].to(k.dtype), k[row, :, :count]], 1)
        values = torch.cat([state.values[row][:, slots].to(v.dtype), v[row, :, :count]], 1)
        t = torch.arange(start, end, device=q.device)[:, None]
        j = torch.tensor([*kept, *range(start, end)], device=q.device, dtype=torch.int64)[None]
        visible = (j <= t) & ((t - j < W) | (j < S))
        scores = torch.where(
            j < S, _scores(q_sink[row, :, :count], keys), _scores(q[row, :, :count], keys)
        )
        out[row, :, :count] = _softmax_average(scores * scale, visible, values)
        for p in range(start, end):
            state.keys[row, :, _slot(p, S, W)] = k[row, :, p - start].to(state.keys.dtype)
            state.values[row, :, _slot(p, S, W)] = v[row, :, p - start].to(state.values.dtype)
    return out, state


def window_mass(
    q: Tensor,
    q_sink: Tensor | None,
    k: Tensor,
    state: RingState,
    layout: Layout,
    window: WindowConfig,
    *,
    scale: float,
) -> Tensor:
    """As ``allmem.attention.window_mass``."""
    S, W = window.sinks, window.window
    q_sink = q if q_sink is None else q_sink
    wide = torch.promote_types(q.dtype, torch.float32)
    mass = torch.zeros(q.shape[:3], dtype=wide, device=q.device)
    for row in range(layout.rows):
        start, count = int(layout.start[row]), int(layout.lengths[row])
        for i in range(count):
            t = start + i
            total = torch.zeros(q.shape[1], dtype=wide, device=q.device)
            for j in range(t + 1):
                if t - j >= W and j >= S:
                    continue
                key = k[row, :, j - start] if j >= start else state.keys[row, :, _slot(j, S, W)]
                query = (q if t - j < W else q_sink)[row, :, i : i + 1]
                score = _scores(query, key[:, None])[:, 0, 0] * scale
                total = total + score.exp()
            mass[row, :, i] = total.log()
    return mass


def full_attention(
    q: Tensor, k: Tensor, v: Tensor, state: GrowingState, layout: Layout, *, scale: float
) -> tuple[Tensor, GrowingState]:
    """As ``allmem.attention.full_attention``."""
    out = torch.zeros(*q.shape[:3], v.shape[3], dtype=q.dtype, device=q.device)
    size = max(int(layout.end.max()), state.keys.shape[2])
    all_keys = state.keys.new_zeros(*state.keys.shape[:2], size, state.keys.shape[3])
    all_values = state.values.new_zeros(*state.values.shape[:2], size, state.values.shape[3])
    for row in range(layout.rows):
        start, count = int(layout.start[row]), int(layout.lengths[row])
        end = start + count
        keys = torch.cat([state.keys[row][:, :start].to(k.dtype), k[row, :, :count]], 1)
        values = torch.cat([state.values[row][:, :start].to(v.dtype), v[row, :, :count]], 1)
        t = torch.arange(start, end, device=q.device)[:, None]
        visible = torch.arange(end, device=q.device)[None] <= t
        scores = _scores(q[row, :, :count], keys) * scale
        out[row, :, :count] = _softmax_average(scores, visible, values)
        all_keys[row, :, :end] = keys.to(all_keys.dtype)
        all_values[row, :, :end] = values.to(all_values.dtype)
    return out, GrowingState(all_keys, all_values)


def _slot(position: int, sinks: int, window: int) -> int:
    return position if position < sinks else sinks + (position - sinks) % window


def _scores(q: Tensor, keys: Tensor) -> Tensor:
    """q [Q, N, E], keys [K, L, E]: [Q, N, L], at least fp32."""
    wide = torch.promote_types(q.dtype, torch.float32)
    keys = keys.repeat_interleave(q.shape[0] // keys.shape[0], dim=0)
    return q.to(wide) @ keys.to(wide).transpose(1, 2)


def _softmax_average(scores: Tensor, visible: Tensor, values: Tensor) -> Tensor:
    """scores [Q, N, L], visible [N, L], values [K, L, Ev]: [Q, N, Ev] in the dtype of values."""
    weights = torch.softmax(scores.masked_fill(~visible, -torch.inf), dim=-1)
    wide = values.repeat_interleave(scores.shape[0] // values.shape[0], dim=0).to(scores.dtype)
    return (weights @ wide).to(values.dtype)
