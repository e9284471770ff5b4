"""A cache of a fixed number of slots that is shortened from time to time, by whatever rule, and the
attention to it.

The tokens that are kept lie in the order of the text, in the first slots. A token's slot is its
position: neighbours in the cache are neighbours for RoPE, whatever stood between them in the text
(the positions in the cache of StreamingLLM, arXiv 2309.17453, section 3.2). Since slots change when
the cache is shortened, keys are stored before RoPE.

Nothing here knows of rotary embeddings or of the rules.

Letters: R rows, n tokens of a round, Q query heads, K KV heads, G = Q / K, E head size, L slots.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from allmem.layout import Round
from allmem.state import State, may_write

__all__ = ["CompactState", "average", "scores_of"]


@dataclass
class CompactState(State):
    """Keys before RoPE and values of the tokens that are kept.

    How many slots are filled is not stored: the rules tell it from the tokens read. The slots
    behind them hold finite numbers.
    """

    keys: Tensor
    """[R, K, L, E]"""
    values: Tensor
    """[R, K, L, E]"""

    @classmethod
    def empty(
        cls,
        rows: int,
        kv_heads: int,
        head_dim: int,
        slots: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Self:
        """The state of ``rows`` sequences of which nothing has been read."""
        shape = (rows, kv_heads, slots, head_dim)
        return cls(*(torch.zeros(shape, dtype=dtype, device=device) for _ in range(2)))

    def write(self, k: Tensor, v: Tensor, before: Tensor, step: Round) -> CompactState:
        """The tokens of a round, k and v [R, K, n, E], behind the slots that are filled.

        With gradients enabled the result is a copy, without it is this state, changed.

        Args:
            before: [R] filled slots (CPU).
        """
        keys, values = (x if may_write(x) else x.clone() for x in (self.keys, self.values))
        first = int(before[0])
        if step.span is not None and bool((before == first).all()):
            here = slice(first, first + k.shape[2])
            keys[:, :, here], values[:, :, here] = k.to(keys.dtype), v.to(values.dtype)
        else:
            _, valid = step.slots(k.device)
            row, place = valid.nonzero(as_tuple=True)
            slot = before.to(k.device)[row] + place
            keys[row, :, slot] = k[row, :, place].to(keys.dtype)
            values[row, :, slot] = v[row, :, place].to(values.dtype)
        return CompactState(keys, values)

    def keep(self, index: Tensor) -> CompactState:
        """The tokens in the slots ``index`` [R, L], in that order."""
        keys, values = (
            x.gather(2, index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
            for x in (self.keys, self.values)
        )
        return CompactState(keys, values)


def scores_of(q: Tensor, keys: Tensor, scale: float) -> Tensor:
    """q [R, Q, n, E] and keys [R, K, L, E], both after RoPE: [R, K, G, n, L], at least fp32."""
    grouped = (q * scale).unflatten(1, (keys.shape[1], -1))
    scores = grouped.flatten(2, 3) @ keys.mT
    wide = torch.promote_types(q.dtype, torch.float32)
    return scores.to(wide).unflatten(2, grouped.shape[2:4])


def average(scores: Tensor, visible: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The softmax of the scores and the average of the values by it.

    Args:
        scores: [R, K, G, n, L].
        visible: [R or 1, n, L]; every query sees something.
        values: [R, K, L, E].

    Returns:
        [R, Q, n, E], and the weights [R, K, G, n, L].
    """
    weights = torch.softmax(scores.masked_fill(~visible[:, None, None], -torch.inf), -1)
    out = weights.to(values.dtype).flatten(2, 3) @ values
    return out.unflatten(2, weights.shape[2:4]).flatten(1, 2), weights
