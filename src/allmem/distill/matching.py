"""The stage ``match``: each layer's memory alone against what its attention lost.

While the teacher reads a text, every layer's input ``x`` and full attention output pass by. What
the window loses of it is known there and then, and so is what the memory makes of the same ``x``:

    loss = ||alpha * Memory(x) - (Full(x) - Window(x))||^2 / ||Full(x) - Window(x)||^2

(for a memory that is fused otherwise: its layer less Window(x), in place of alpha * Memory(x)),
over the positions that count in a batch of one process. Its gradient stays within the layer: one
forward of the teacher trains all memories, and no layer waits for another to be right. Ours, not
the paper's (``docs/notes/distillation.md``).

Letters: B batch, T slots, R documents as rows, N slots of a row, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from allmem.layout import Layout
from allmem.memory.state import accumulation_dtype
from allmem.mixers.allmem import AllMemMixer
from allmem.mixers.attention import WindowMixer
from allmem.models.cache import AllMemCache
from allmem.models.layer import MixedAttention, Observer
from allmem.models.modeling import AllMemForCausalLM

__all__ = [
    "Matched",
    "counted_rows",
    "has_unit",
    "match_layers",
    "matching_loss",
    "trains",
    "watch_teacher",
]

SMALLEST_TARGET = 1e-12


@dataclass(frozen=True)
class Matched:
    """What one batch said about the layers."""

    total: Tensor
    """[], the mean of the layers' losses times the positions that count; its gradient with respect
    to every memory is ready."""
    layers: dict[int, float]
    """Normalised squared error by layer."""


def trains(mixed: MixedAttention) -> bool:
    """Whether a layer has a memory beside a window."""
    return mixed.memory is not None and isinstance(mixed.attention, WindowMixer)


def has_unit(mixed: MixedAttention) -> bool:
    """Whether the memory beside the window is one whose projections can be set."""
    return trains(mixed) and isinstance(mixed.memory, AllMemMixer)


def counted_rows(mixed: MixedAttention, counts: Tensor, layout: Layout) -> Tensor:
    """[R, N] bool: the slots of a layout's rows that hear the layer's memory and whose next token
    counts; counts [B, T - 1]."""
    ahead = F.pad(counts, (0, 1))
    return layout.gather(ahead[..., None])[..., 0] & layout.valid & mixed.hears(layout)


@torch.no_grad()
def watch_teacher(
    model: AllMemForCausalLM, batch: dict[str, Tensor], cache: AllMemCache, observe: Observer
) -> None:
    """Let the teacher read a batch of ``input_ids`` and ``position_ids``, [B, T], with an observer
    in every layer.

    Args:
        cache: new; says with which sizes the students beside it read.
    """
    model.hidden_states(
        batch["input_ids"],
        position_ids=batch["position_ids"],
        full_attention=True,
        observe=observe,
        cache=cache,
    )


def matching_loss(
    mixed: MixedAttention, x: Tensor, full: Tensor, layout: Layout, chosen: Tensor
) -> Tensor:
    """The normalised squared error of one layer.

    Args:
        x: [R, N, D], what enters the attention; ``full``: [R, N, D], its output without a window.
        chosen: [R, N] bool, the positions that count.
    """
    assert mixed.memory is not None
    state = mixed.init_state(x.shape[0], x.dtype, x.device, layout.window, layout.chunk)
    wide = accumulation_dtype(x.dtype)
    with torch.no_grad():
        windowed, _, features = mixed.attention.attend(
            x,
            state.attention,
            layout,
            mixed.memory.wants,
        )
        lost = (full - windowed)[chosen].to(wide)
    if mixed.memory.fusion == "gate":
        assert state.memory is not None
        remembered, _ = mixed.memory(x, state.memory, layout, features)
        said = mixed.said(remembered, x, layout)
    else:
        # What the layer says beyond its window; the window alone has consumed the other state.
        again = mixed.init_state(x.shape[0], x.dtype, x.device, layout.window, layout.chunk)
        said = mixed(x, again, layout)[0] - windowed
    said = said[chosen].to(wide)
    return (said - lost).square().sum() / lost.square().sum().clamp_min(SMALLEST_TARGET)


def match_layers(
    model: AllMemForCausalLM, batch: dict[str, Tensor], counts: Tensor, cache: AllMemCache
) -> Matched:
    """Let the teacher read a batch and match every layer on the way.

    Args:
        batch: ``input_ids`` and ``position_ids``, [B, T].
        counts: [B, T - 1] bool, the positions that count.
        cache: new; says with which sizes to read.
    """
    losses: dict[int, float] = {}
    parameters: list[Tensor] = []
    gradients: list[Tensor] = []
    weight = int(counts.sum())

    def observe(mixed: MixedAttention, x: Tensor, full: Tensor, layout: Layout) -> None:
        if not trains(mixed):
            return
        own = [p for p in mixed.slow_parameters().values() if p.requires_grad]
        with torch.enable_grad():
            loss = matching_loss(mixed, x, full, layout, counted_rows(mixed, counts, layout))
            # Now, and not later: no two layers' activations need to be kept at a time.
            found = torch.autograd.grad(loss, own, allow_unused=True)
        losses[mixed.layer] = float(loss.detach())
        for parameter, gradient in zip(own, found, strict=True):
            if gradient is not None:
                parameters.append(parameter)
                gradients.append(gradient)

    watch_teacher(model, batch, cache, observe)
    scale = weight / max(len(losses), 1)
    total = torch.tensor(sum(losses.values()) * scale, dtype=torch.float64, device=counts.device)
    ready = [gradient * scale for gradient in gradients]
    return Matched(_Ready.apply(total, ready, *parameters), losses)


class _Ready(torch.autograd.Function):
    """A loss whose gradient is known already."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> Any:
        return None, None, *(outer.to(g.dtype) * g for g in ctx.gradients)
