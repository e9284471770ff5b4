"""``several``: two or more memories in one layer, side by side or behind a router.

    y = Memory_1(x) + s_2 * Memory_2(x) + ... + s_P * Memory_P(x)             route = none
    y = g_1(x) Memory_1(x) + s_2 * g_2(x) Memory_2(x) + ...                   route = topk

with a scale s_i for each channel that starts at one: the layer's alpha, which starts at zero,
multiplies the sum, so that alpha moves first and every part after it.

``multiscale`` has the paper's memory with three periods (its principle of multiscale temporal
dynamics): what was just said is written early, and what lasts in large steps. ``routed`` has four
memories that share what one would hold (Mixture-of-Memories, Du et al. 2025, arXiv:2502.13685): a
token is written into the ``topk`` of them that a router names, so that unlike things interfere
less, and read from the same, g being the router's softmax over those and zero for the others. What
a part does not get it neither writes nor decays over; only its chunk goes on, since chunks count
the document's tokens. Unlike the original there is no memory that all tokens share and no loss that
balances the router, and a convolution sees zeros where a token is not its part's.

A part that names no size of its own has an equal share of ``size``, which by default is what one
memory would have: as many bytes in all.

Letters: R rows, N slots of a call, D hidden size, P parts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from allmem.layout import Layout
from allmem.memory.projections import AttentionWeights, Features, Written
from allmem.memory.unit import Rate
from allmem.mixers.base import Capabilities, MemoryMixer, Mixer
from allmem.mixers.parts import MULTISCALE, ROUTED, SeveralOptions, in_proportion
from allmem.mixers.registry import MemoryKind, register_memory
from allmem.state import State

__all__ = ["SeveralMixer", "SeveralState"]


@dataclass
class SeveralState(State):
    """What one sequence leaves behind in every part."""

    parts: dict[str, State]
    """By the part's number."""


class SeveralMixer(MemoryMixer):
    """Memories of any kind under one alpha.

    Args:
        hidden_size: D.
        options: what the parts are.
        attention: the attention beside them.

    Raises:
        AllMemError: if the parts do not fit the model, or a part cannot write what it does not
            read although it has to.
    """

    def __init__(
        self, hidden_size: int, options: SeveralOptions, attention: AttentionWeights
    ) -> None:
        super().__init__()
        chosen = options.divided(hidden_size, attention.kv_heads)
        made = [kind.build(hidden_size, values, attention) for kind, values in chosen]
        options.check_writing(made)
        self.options = options
        self.parts = nn.ModuleList(made)
        self.chunks = [getattr(values, "chunk", None) for _, values in chosen]
        self.wants = max(part.wants for part in made)
        names = [f"parts.{i}.{name}" for i, part in enumerate(made) for name in part.keep_fp32]
        if options.scale == "channel":
            self.scales = nn.Parameter(torch.ones(len(made) - 1, hidden_size))
        if options.route == "topk":
            self.router = Rate(hidden_size, len(made))
            names.append("router")
            with torch.no_grad():
                # At zero, all tokens would go to the same parts.
                self.router.weight.normal_(std=hidden_size**-0.5)
        self.keep_fp32 = tuple(names)  # type: ignore[misc]

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]
        """What all parts promise, and whether there is anything to train."""
        promised = [part.capabilities for part in self.mixers()]
        own = self.options.scale == "channel" or self.options.route == "topk"
        return Capabilities(
            constant_state=all(p.constant_state for p in promised),
            trainable=own or any(p.trainable for p in promised),
        )

    def mixers(self) -> list[Mixer]:
        """The parts."""
        return list(self.parts)  # type: ignore[arg-type]

    def init_state(self, rows: int, dtype: torch.dtype, device: torch.device) -> SeveralState:
        states = [part.init_state(rows, dtype, device) for part in self.mixers()]
        return SeveralState({str(i): state for i, state in enumerate(states)})

    def lag(self, layout: Layout) -> int:
        """That of the slowest part; the others find again what they wrote before it left the
        window."""
        return max(
            part.lag(self._layout(i, layout)) if isinstance(part, MemoryMixer) else 0
            for i, part in enumerate(self.mixers())
        )

    def forward(
        self,
        x: Tensor,
        state: State,
        layout: Layout,
        features: Features | None = None,
        written: Written | None = None,
    ) -> tuple[Tensor, SeveralState]:
        assert isinstance(state, SeveralState)
        if not layout.full:
            x = torch.where(layout.valid[..., None], x, 0)
        shares: Tensor | None = None
        writes: list[Written | None] = [written] * len(self.parts)
        if self.options.route == "topk":
            shares, gets = self._route(x)
            if written is None:
                writes = self._parted(x, layout.valid, gets)
            else:
                assert written.x is not None
                assert written.keep is not None
                writes = self._parted(written.x, written.keep, self._route(written.x)[1])
        y: Tensor | None = None
        after: dict[str, State] = {}
        for i, part in enumerate(self.mixers()):
            place = self._layout(i, layout)
            # Only a memory mixer takes what it shall write in place of what it reads.
            instead = () if writes[i] is None else (writes[i],)
            said, after[str(i)] = part(x, state.parts[str(i)], place, features, *instead)
            if shares is not None:
                said = said * shares[..., i : i + 1].to(said.dtype)
            if i and self.options.scale == "channel":
                said = said * self.scales[i - 1].to(said.dtype)
            y = said if y is None else y + said
        assert y is not None
        return y, SeveralState(after)

    def _route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of every token, [R, N, P]: the weights with which the parts are read, and whether a part
        gets it."""
        logits = self.router(x)
        chosen = torch.zeros_like(logits, dtype=torch.bool)
        chosen.scatter_(-1, logits.topk(self.options.topk, dim=-1).indices, True)
        return logits.masked_fill(~chosen, -torch.inf).softmax(-1), chosen

    def _parted(self, x: Tensor, keep: Tensor, gets: Tensor) -> list[Written | None]:
        """What every part writes of what all of them write together."""
        found: list[Written | None] = []
        for mine in gets.unbind(-1):
            part = keep & mine
            found.append(Written(torch.where(part[..., None], x, 0), part))
        return found

    def router_load(self, x: Tensor, layout: Layout) -> Tensor:
        """The share of tokens that every part gets, [P]; they add up to ``topk``.

        Args:
            x: [R, N, D], what the layer's memory reads.
        """
        assert self.options.route == "topk", "without a router every part gets every token"
        x = torch.where(layout.valid[..., None], x, 0)
        return self._route(x)[1][layout.valid].float().mean(0)

    def _layout(self, part: int, layout: Layout) -> Layout:
        """``layout`` as a part reads it: with its own chunk, in proportion to the one that is
        asked for."""
        own = self.chunks[part]
        if layout.chunk is None or own is None:
            return layout
        assert self.options.chunk is not None
        chunk = in_proportion(own, layout.chunk, self.options.chunk)
        # Shared by the layers of a call, which share what they work out.
        if ("chunk", chunk) not in layout.memo:
            layout.memo["chunk", chunk] = layout.read_with(layout.window, chunk)
        found: Layout = layout.memo["chunk", chunk]
        return found

    def periods(self, layout: Layout) -> frozenset[int] | None:
        """Of all parts."""
        found: frozenset[int] = frozenset()
        for i, part in enumerate(self.mixers()):
            own = part.periods(self._layout(i, layout))
            if own is None:
                return None
            found |= own
        return found

    def carry(self, old: State, new: State) -> SeveralState:
        """As each part does."""
        assert isinstance(old, SeveralState)
        assert isinstance(new, SeveralState)
        parts = enumerate(self.mixers())
        return SeveralState(
            {str(i): part.carry(old.parts[str(i)], new.parts[str(i)]) for i, part in parts}
        )

    def state_bytes(self, tokens: int, dtype: torch.dtype) -> int:
        return sum(part.state_bytes(tokens, dtype) for part in self.mixers())

    def flops_by_part(self, tokens: int) -> dict[str, int]:
        """All parts compute with all tokens, also those whose result a router leaves out."""
        total: dict[str, int] = {}
        for part in self.mixers():
            for name, flops in part.flops_by_part(tokens).items():
                total[name] = total.get(name, 0) + flops
        if self.options.route == "topk":
            # Once for what is read, once for what is written if that is something else.
            times = 2 if self.options.write_scope == "evicted" else 1
            total["memory router"] = tokens * times * 2 * self.router.weight.numel()
        return total


register_memory(MemoryKind("several", SeveralOptions, SeveralMixer))
register_memory(MemoryKind("multiscale", SeveralOptions, SeveralMixer, MULTISCALE))
register_memory(MemoryKind("routed", SeveralOptions, SeveralMixer, ROUTED))
