"""Rotary positions (RoPE), exact at any distance.

Angles are computed in float64: in fp32 the angle of the fastest feature is off by 0.03 rad at a
million tokens. Frequencies are fixed when a model is converted: schemes whose frequencies depend on
the length read so far (dynamic NTK, longrope) are frozen at S + W, the longest distance that the
attention of a converted model ever spans.

Letters: R rows, N slots, E head size, P rotated features (P <= E).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from allmem.layout import Layout

__all__ = ["Rotary", "rotate"]


@dataclass(frozen=True)
class Rotary:
    """Frequencies of one RoPE: feature pair i turns by ``frequencies[i]`` rad per token."""

    frequencies: tuple[float, ...]
    """P / 2 numbers."""
    scaling: float = 1.0
    """Factor on cos and sin (yarn's attention factor)."""

    def table(
        self, positions: Tensor, dtype: torch.dtype, scaled: bool = True
    ) -> tuple[Tensor, Tensor]:
        """cos and sin, each [..., P], of integer positions [...]; negative ones turn back."""
        # Compiled code has them as constants.
        placed = _on if torch.compiler.is_compiling() else _kept_on
        angles = positions[..., None].double() * placed(positions.device, self.frequencies)
        angles = torch.cat([angles, angles], dim=-1)
        scaling = self.scaling if scaled else 1.0
        return (angles.cos() * scaling).to(dtype), (angles.sin() * scaling).to(dtype)

    def at_positions(self, layout: Layout, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The table of a call's positions, [R, N, P]; worked out once for all layers."""
        return self._memo(layout, ("positions", dtype), lambda: self.table(layout.positions, dtype))

    def back_to_start(
        self, layout: Layout, dtype: torch.dtype, behind: int = 0
    ) -> tuple[Tensor, Tensor]:
        """The table that undoes the rotation to a token's position, or to that of the token
        ``behind`` tokens before it."""
        return self._memo(
            layout,
            ("back", dtype, behind),
            lambda: self.table(behind - layout.positions, dtype, scaled=False),
        )

    def back_to_window(
        self, layout: Layout, limit: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor] | None:
        """The table that turns a query from its position t back to min(t, ``limit``); ``None`` if
        no token of the call lies beyond ``limit``."""
        if not layout.reaches_beyond(limit):
            return None
        return self._memo(
            layout,
            ("window", limit, dtype),
            lambda: self.table(
                layout.positions.clamp(max=limit) - layout.positions, dtype, scaled=False
            ),
        )

    def at_slots(self, layout: Layout, slots: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The table of the positions 0 ... ``slots`` - 1, [1, slots, P], for caches whose slots are
        positions."""
        return self._memo(
            layout,
            ("slots", slots, dtype),
            lambda: self.table(torch.arange(slots, device=layout.device)[None], dtype),
        )

    def _memo(self, layout, key, compute):  # type: ignore[no-untyped-def]
        key = (self, *key)
        if key not in layout.memo:
            layout.memo[key] = compute()
        return layout.memo[key]


def _on(device: torch.device, frequencies: tuple[float, ...]) -> Tensor:
    return torch.tensor(frequencies, dtype=torch.float64, device=device)


_kept_on = cache(_on)
"""Nothing may be brought to a device while a CUDA graph is captured."""


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the first P features of x [R, heads, N, E] by a table of [R, N, P]; the rest stays."""
    cos, sin = (t[:, None] for t in table)
    size = cos.shape[-1]
    turned, rest = x[..., :size], x[..., size:]
    first, second = turned.chunk(2, dim=-1)
    half_turned = torch.cat([-second, first], dim=-1)
    return torch.cat([turned * cos + half_turned * sin, rest], dim=-1)
