"""The stage ``calibrate``: where the memories start, from what the teacher does on the data.

Two things keep a memory that starts from the whole attention from recalling anything (measured on
SmolLM2-135M, ``docs/notes/distillation.md``). Retrieval is the work of few query heads, and laying
several over one memory head averages them away. And queries and keys of a pretrained attention
share a large mean, which softmax does not see in the keys and which a normalisation turns into most
of every feature. So, after looking at some rows, each memory head

- stands beside one query head, those of the layer that lost most at the positions that count, and
- starts with that head's projections less the mean: the maps have no bias, but x has a direction c
  with c x close to 1 (by least squares), and W - (W m) c maps the mean m of x close to zero.

Memories of other kinds, whose projections are the same, start so too. Ours, not the paper's.

Letters: D hidden size, Q query heads, E their size, n positions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from allmem.distill.matching import counted_rows, trains, watch_teacher
from allmem.errors import AllMemError
from allmem.layout import Layout
from allmem.memory.projections import AttentionWeights, Projections
from allmem.memory.state import accumulation_dtype
from allmem.mixers.allmem import AllMemMixer
from allmem.mixers.heads import HeadMixer
from allmem.models.cache import AllMemCache
from allmem.models.layer import MixedAttention
from allmem.models.modeling import AllMemForCausalLM
from allmem.models.structure import attention_weights

__all__ = ["Calibrator", "check_calibrates"]

RIDGE = 1e-3
"""Of the least squares for c, as a share of the mean square of x."""


def check_calibrates(model: AllMemForCausalLM) -> None:
    """Refuse a model whose memories cannot stand beside single query heads.

    Raises:
        AllMemError: if there is none, or its projections or head size do not allow it.
    """
    layers = [mixed for mixed in model.mixers() if _calibrates(mixed)]
    if not layers:
        raise AllMemError("no layer has a memory beside a window that can be calibrated")
    for mixed in layers:
        around, size = _around(mixed), mixed.attention.shape.head_dim
        if around.projections.kind != "full":
            raise AllMemError(
                f"calibrating needs projections = full, not {around.projections.kind!r}"
            )
        for name, own in around.sizes.items():
            if own != size:
                raise AllMemError(
                    f"calibrating needs {name} = {size}, the size of the attention's heads, not "
                    f"{own}"
                )


@dataclass(frozen=True)
class _Around:
    """What stands around a memory's rule: the same for all of them."""

    projections: Projections
    heads: int
    sizes: dict[str, int]
    """Of a head, by the options' names."""


def _around(mixed: MixedAttention) -> _Around:
    memory = mixed.memory
    if isinstance(memory, AllMemMixer):
        unit = memory.unit
        return _Around(unit.projections, unit.heads, {"head_dim": unit.head_dim})
    assert isinstance(memory, HeadMixer)
    shell = memory.shell
    sizes = {"key_dim": shell.key_dim, "value_dim": shell.value_dim}
    return _Around(shell.projections, shell.heads, sizes)


def _calibrates(mixed: MixedAttention) -> bool:
    """Whether there is a memory whose output is added to the window's, behind projections of its
    own."""
    memory = mixed.memory
    return trains(mixed) and (
        isinstance(memory, AllMemMixer)
        or (isinstance(memory, HeadMixer) and memory.fusion == "gate")
    )


@dataclass
class _Seen:
    """Sums of one layer."""

    total: Tensor
    """[D], of x."""
    square: Tensor
    """[D, D], of x^T x."""
    tokens: int = 0
    energy: Tensor | None = None
    """[Q], of what each query head lost of the layer's output."""
    mean: Tensor | None = None
    """[Q E], of what the heads lost, before the output projection."""
    counted: int = 0


@dataclass
class Calibrator:
    """Sums over everything seen so far."""

    seen: dict[int, _Seen] = field(default_factory=dict)
    heads: dict[int, list[int]] = field(default_factory=dict)
    """Layer -> the query heads that its memory heads were started beside, after ``start``."""

    @torch.no_grad()
    def step(
        self,
        model: AllMemForCausalLM,
        batch: dict[str, Tensor],
        counts: Tensor,
        cache: AllMemCache,
    ) -> dict[int, float]:
        """Let the teacher read a batch and look on; arguments as ``match_layers``.

        Returns:
            of every layer, the share of its full output (by squares) that the window lost.
        """
        lost: dict[int, float] = {}
        with _watching(model) as entering:

            def observe(mixed: MixedAttention, x: Tensor, full: Tensor, layout: Layout) -> None:
                if _calibrates(mixed):
                    chosen = counted_rows(mixed, counts, layout)
                    lost[mixed.layer] = self._add(mixed, x, full, layout, chosen, entering)

            watch_teacher(model, batch, cache, observe)
        return lost

    def _add(
        self,
        mixed: MixedAttention,
        x: Tensor,
        full: Tensor,
        layout: Layout,
        chosen: Tensor,
        entering: dict[int, Tensor],
    ) -> float:
        wide = accumulation_dtype(x.dtype)
        weights = _weights(mixed)
        heads_full = entering[mixed.layer]
        state = mixed.init_state(x.shape[0], x.dtype, x.device, layout.window, layout.chunk)
        windowed, _, _ = mixed.attention.attend(x, state.attention, layout)
        lost = (heads_full - entering[mixed.layer])[chosen].to(wide)  # [n, Q E]
        tokens = x[layout.valid].to(wide)
        zeros = tokens.new_zeros
        seen = self.seen.setdefault(
            mixed.layer, _Seen(zeros(tokens.shape[1]), zeros(tokens.shape[1], tokens.shape[1]))
        )
        seen.total += tokens.sum(0)
        seen.square += tokens.mT @ tokens
        seen.tokens += len(tokens)
        energy = _by_head(lost, weights)
        seen.energy = energy if seen.energy is None else seen.energy + energy
        total = lost.sum(0)
        seen.mean = total if seen.mean is None else seen.mean + total
        seen.counted += len(lost)
        difference = (full - windowed)[chosen].to(wide).square().sum()
        return float(difference / full[chosen].to(wide).square().sum().clamp_min(1e-12))

    @torch.no_grad()
    def start(self, model: AllMemForCausalLM) -> None:
        """Write the starting values.

        Raises:
            AllMemError: if nothing that counts was seen.
        """
        for mixed in model.mixers():
            if _calibrates(mixed):
                self._start(mixed, self.seen[mixed.layer])

    def _start(self, mixed: MixedAttention, seen: _Seen) -> None:
        around = _around(mixed)
        weights = _weights(mixed)
        if seen.counted == 0 or seen.energy is None or seen.mean is None:
            raise AllMemError(
                "calibrating saw no position that counts; give it more steps, or longer rows"
            )
        # What a head loses on average can be given back without looking at anything.
        mean = (seen.mean / seen.counted)[None]
        varying = seen.energy - seen.counted * _by_head(mean, weights)
        order = varying.argsort(descending=True, stable=True).tolist()
        chosen = [order[i % len(order)] for i in range(around.heads)]
        self.heads[mixed.layer] = chosen

        middle = (seen.total / seen.tokens).double().cpu()
        second = (seen.square / seen.tokens).double().cpu()
        ridge = RIDGE * second.diagonal().mean() * torch.eye(len(middle)).to(second)
        one = torch.linalg.solve(second + ridge, middle)  # c, [D]
        size = weights.head_dim
        projections: Any = around.projections
        for slot, head in enumerate(chosen):
            here = slice(slot * size, (slot + 1) * size)
            query = slice(head * size, (head + 1) * size)
            shared = head * weights.kv_heads // weights.query_heads
            key = slice(shared * size, (shared + 1) * size)
            for name, source in (("q", _known(weights.q)[query]), ("k", _known(weights.k)[key])):
                matrix = source.double().cpu()
                centred = matrix - (matrix @ middle)[:, None] * one
                getattr(projections, name).weight[here] = centred.to(source)
            projections.v.weight[here] = _known(weights.v)[key]
            projections.o.weight[:, here] = _known(weights.o)[:, query]
        mixed.alpha.fill_(1)


def _weights(mixed: MixedAttention) -> AttentionWeights:
    return attention_weights(mixed.attention.core, mixed.attention.shape)


def _known(matrix: Tensor | None) -> Tensor:
    assert matrix is not None
    return matrix


def _by_head(lost: Tensor, weights: AttentionWeights) -> Tensor:
    """Squares of each head's part of an output, summed over positions: [Q]; lost [n, Q E]."""
    output = _known(weights.o).to(lost)
    parts = [
        (lost[:, h : h + weights.head_dim] @ output[:, h : h + weights.head_dim].mT).square().sum()
        for h in range(0, lost.shape[1], weights.head_dim)
    ]
    return torch.stack(parts)


@contextlib.contextmanager
def _watching(model: AllMemForCausalLM) -> Iterator[dict[int, Tensor]]:
    """Layer -> what entered its output projection last, [R, N, Q E]."""
    entering: dict[int, Tensor] = {}
    handles = []
    for mixed in model.mixers():
        if _calibrates(mixed):
            core: Any = mixed.attention.core

            def keep(_: Any, inputs: tuple[Tensor, ...], layer: int = mixed.layer) -> None:
                entering[layer] = inputs[0]

            handles.append(core.o_proj.register_forward_pre_hook(keep))
    try:
        yield entering
    finally:
        for handle in handles:
            handle.remove()
