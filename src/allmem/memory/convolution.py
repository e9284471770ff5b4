"""Causal depthwise convolution over ragged rows, with the last inputs as its state."""

from __future__ import annotations

import torch
from torch import Tensor

from allmem.layout import Layout

__all__ = ["causal_convolution"]


def causal_convolution(
    x: Tensor, taps: Tensor, tail: Tensor | None, layout: Layout
) -> tuple[Tensor, Tensor | None]:
    """y_t = sum_j taps[j] * x_{t-j}, where nothing stands before a document's first token.

    Args:
        x: [R, N, F], zero in padding slots.
        taps: [K, F]; ``taps[0]`` multiplies the current token.
        tail: [R, K - 1, F], the row's last inputs of earlier calls, oldest first; ``None`` for K =
        1.

    Returns:
        y [R, N, F] and the new tail.
    """
    taps = taps.to(x.dtype)
    if tail is None:
        return x * taps[0], None
    reach = tail.shape[1]
    slots = x.shape[1]
    before = torch.cat([tail.to(x.dtype), x], dim=1)  # [R, K - 1 + N, F]
    y = x * taps[0]
    for j in range(1, reach + 1):
        y = y + before[:, reach - j : reach - j + slots] * taps[j]
    return y, _last_inputs(before, reach, layout)


def _last_inputs(before: Tensor, reach: int, layout: Layout) -> Tensor:
    """The ``reach`` inputs that end at every row's last token, [R, reach, F]."""
    if layout.full:
        # A copy, since a view would keep all inputs of the call as long as the state lives.
        return before[:, before.shape[1] - reach :].clone()
    index = layout.lengths[:, None] + torch.arange(reach)[None]
    index = index.to(before.device)[..., None].expand(-1, -1, before.shape[2])
    return before.gather(1, index)
