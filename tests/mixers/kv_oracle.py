"""The KV policies as one would explain them: one sequence, token by token, with lists of positions.

Letters: T tokens, Q query heads, K KV heads, E head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from allmem.attention.rotary import Rotary

__all__ = ["Oracle", "rope"]


def rope(x: Tensor, position: int, rotary: Rotary | None) -> Tensor:
    """x [..., E] turned to a position, as complex numbers."""
    if rotary is None:
        return x
    half = len(rotary.frequencies)
    angles = position * torch.tensor(rotary.frequencies, dtype=torch.float64)
    turn = torch.polar(torch.full_like(angles, rotary.scaling), angles)
    turned = torch.complex(x[..., :half], x[..., half : 2 * half]) * turn
    return torch.cat([turned.real, turned.imag, x[..., 2 * half :]], -1)


class Oracle:
    """Reads q [Q, T, E], k and v [K, T, E], all before RoPE.

    Args:
        name, sizes: the policy and its numbers: slots, sinks, interval and what is its own.
    """

    def __init__(self, name: str, rotary: Rotary | None, **sizes: Any) -> None:
        self.name, self.rotary, self.sizes = name, rotary, sizes
        self.near: list[int] = []
        self.cursor = sizes["sinks"]
        self.got: dict[int, Tensor] = {}
        """[K], attention that a token got: in the cache (blocks), in the interval (eviction)."""
        self.blocks: list[list[int]] = []
        self.heads: list[Tensor] = []
        self.asked: list[Tensor] = []
        self.chosen: list[int] = []

    def read(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, list[list[int]]]:
        """The output [Q, T, E], and the positions that every token saw."""
        self.q, self.k, self.v = q, k, v
        outputs, seen = [], []
        for t in range(q.shape[1]):
            self.near.append(t)
            if self.name == "blocks":
                self.look_up(t)
            far = [p for block in self.chosen for p in self.blocks[block]]
            weights = self.weights(q[:, t], len(self.near) - 1, self.near, far)
            positions = [*self.near, *far]
            seen.append(positions)
            groups = weights.view(k.shape[0], -1, len(positions))
            outputs.append((groups @ v[:, positions]).flatten(0, 1))
            for i, p in enumerate(self.near):
                self.got[p] = self.got.get(p, 0) + groups[..., i].sum(1)
            if (t + 1) % self.sizes["interval"] == 0:
                {"ladder": self.shorten, "eviction": self.evict, "blocks": self.offload}[
                    self.name
                ]()
        return torch.stack(outputs, 1), seen

    def weights(self, q: Tensor, place: int, near: Sequence[int], far: Sequence[int]) -> Tensor:
        """How a query [Q, E] at a place in the cache attends to positions, [Q, those]."""
        group = q.shape[0] // self.k.shape[0]
        rows = []
        for head in range(q.shape[0]):
            k = self.k[head // group]
            turned = rope(q[head], place, self.rotary)
            beyond = rope(q[head], self.sizes["slots"], self.rotary)
            scores = [turned @ rope(k[p], i, self.rotary) for i, p in enumerate(near)]
            scores += [beyond @ rope(k[p], 0, self.rotary) for p in far]
            rows.append(torch.softmax(torch.stack(scores) * q.shape[1] ** -0.5, 0))
        return torch.stack(rows)

    # What happens when an interval ends

    def shorten(self) -> None:
        s = self.sizes
        while len(self.near) > s["slots"] - s["interval"]:
            room = len(self.near) - s["recent"] - s["group"]
            if self.cursor > room:
                self.cursor = s["sinks"]
            stay = range(s["offset"], s["offset"] + s["stay"])
            for i in reversed(range(s["group"])):
                if i not in stay:
                    del self.near[self.cursor + i]
            self.cursor += s["stay"]

    def evict(self) -> None:
        s = self.sizes
        middle = self.near[s["sinks"] : len(self.near) - s["interval"]]
        past = self.near[: len(self.near) - s["interval"]]
        scores = {p: float(self.got[p].sum()) for p in middle}
        if s["priority"] and past:
            asked = [
                self.weights(self.q[:, p], len(past) + p, past, []) for p in range(s["priority"])
            ]
            total = torch.stack(asked).sum((0, 1))
            scores = {p: float(w) for p, w in zip(past, total, strict=True) if p in middle}
        while len(self.near) > s["slots"] - s["interval"]:
            worst = min(scores, key=lambda p: scores[p])
            del scores[worst]
            self.near.remove(worst)
        self.got = {}

    def offload(self) -> None:
        s = self.sizes
        if len(self.near) < s["slots"]:
            return
        block = self.near[s["sinks"] : s["sinks"] + s["interval"]]
        del self.near[s["sinks"] : s["sinks"] + s["interval"]]
        heads = []
        for head, k in enumerate(self.k):
            best = sorted(block, key=lambda p: -float(self.got[p][head]))
            heads.append(k[best[: s["representatives"]]].mean(0))
        self.blocks.append(block)
        self.heads.append(torch.stack(heads))

    def look_up(self, t: int) -> None:
        s = self.sizes
        self.asked.append(self.q[:, t])
        if t % s["lookup"]:
            return
        asked = torch.stack(self.asked).sum(0)
        self.asked = []
        group = len(asked) // len(self.k)
        similar = []
        for heads in self.heads:
            each = rope(heads.repeat_interleave(group, 0), 0, self.rotary)
            similar.append(float((rope(asked, s["slots"], self.rotary) * each).sum()))
        order = sorted(range(len(similar)), key=lambda block: -similar[block])
        self.chosen = order[: s["retrieved"]]
