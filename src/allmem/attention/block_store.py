"""Blocks of tokens that left the device: their keys and values, and one vector for each block by
which it is found. All of it lies on the CPU, and it grows.

Nothing here knows of positions, of rotary embeddings or of what a block's vector is made of.

Letters: R rows, K KV heads, E head size, B tokens of a block, M blocks, n tokens of a round, g
questions, T most blocks that answer one, U blocks that a round sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from allmem.state import State, may_write

__all__ = ["BlockStore"]

CPU = torch.device("cpu")


@dataclass
class BlockStore(State):
    """A row's blocks are its first ones; zeros stand behind them where other rows have more."""

    keys: Tensor
    """[R, M, K, B, E]"""
    values: Tensor
    """[R, M, K, B, E]"""
    heads: Tensor
    """[R, M, K, E], what a block is found by."""

    @classmethod
    def empty(
        cls,
        rows: int,
        kv_heads: int,
        head_dim: int,
        block: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Self:
        """No blocks; on the CPU, whatever the device, unless that is meta."""
        where = device if device.type == "meta" else CPU
        shapes = [(block, head_dim), (block, head_dim), (head_dim,)]
        return cls(*(torch.zeros(rows, 0, kv_heads, *s, dtype=dtype, device=where) for s in shapes))

    def add(
        self, rows: Tensor, numbers: Tensor, blocks: tuple[Tensor, Tensor, Tensor], room: int
    ) -> BlockStore:
        """One more block for some rows. Without gradients this store may be changed.

        Args:
            rows: [R'] those (CPU).
            numbers: [R'] blocks that each had (CPU).
            blocks: keys and values [R, K, B, E] and what finds them [R, K, E], of all rows.
            room: blocks that a row will have when the call ends, at most. Room is made once for
                all, so that blocks do not copy those before them.
        """
        stores = []
        for old, new in zip(self.tensors().values(), blocks, strict=True):
            more = room - old.shape[1]
            if more > 0:
                store = F.pad(old, (*[0] * (2 * (old.dim() - 2)), 0, more))
            else:
                store = old if may_write(old) else old.clone()
            store[rows, numbers] = new[rows.to(new.device)].to(store)
            stores.append(store)
        return BlockStore(*stores)

    def best(self, questions: Tensor, stored: Tensor, most: int) -> Tensor:
        """The blocks most similar to questions [R, g, K, E], over all heads: [R, g, T] with T =
        ``most``, the best first, -1 where there are no more; of equal ones the earlier first.

        Args:
            stored: [R] blocks of each row (CPU).
        """
        asked = questions.to(CPU).flatten(2)
        similar = asked @ self.heads.flatten(2).to(asked.dtype).mT  # [R, g, M]
        there = torch.arange(similar.shape[2]) < stored[:, None, None]
        order = similar.masked_fill(~there, -torch.inf).sort(dim=-1, descending=True, stable=True)
        found = order.indices[..., :most]
        found = F.pad(found, (0, most - found.shape[2]), value=-1)
        return found.masked_fill(torch.arange(most) >= stored[:, None, None], -1)

    def fetch(self, sees: Tensor, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The blocks that some token of a row sees.

        Args:
            sees: [R, n, M] bool (CPU).
            like: a tensor with the device and dtype to fetch them to.

        Returns:
            Keys and values [R, K, U * B, E], and which token sees which, [R, n, U * B].
        """
        used = sees.any(1)  # [R, M]
        most = int(used.sum(1).max())
        which = used.int().sort(dim=1, descending=True, stable=True).indices[:, :most]  # [R, U]
        visible = sees.gather(2, which[:, None].expand(-1, sees.shape[1], -1))
        visible = visible.repeat_interleave(self.keys.shape[3], dim=2).to(like.device)
        rows = torch.arange(len(which))[:, None]
        keys, values = (
            blocks[rows, which].to(like).transpose(1, 2).flatten(2, 3)
            for blocks in (self.keys, self.values)
        )
        return keys, values, visible
