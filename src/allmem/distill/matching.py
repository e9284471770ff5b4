"""The first stage: each layer's memory alone against what its attention lost.

While the teacher reads a text, every layer's input ``x`` and full attention output pass by. What
the window loses of it is known there and then, and so is what the memory makes of the same ``x``:

    loss = ||alpha * Memory(x) - (Full(x) - Window(x))||^2 / ||Full(x) - Window(x)||^2

over the positions from W on. Its gradient stays within the layer: one forward of the teacher trains
all memories, and no layer waits for another to be right. Ours, not the paper's: training end to end
from the start first makes a converted model worse (``docs/notes/distillation.md``).

Letters: R rows, N slots of a call, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from allmem.layout import Layout
from allmem.memory.state import accumulation_dtype
from allmem.mixers.attention import WindowMixer
from allmem.models.layer import MixedAttention
from allmem.models.modeling import AllMemForCausalLM

__all__ = ["match_layers", "matching_loss", "trains"]

SMALLEST_TARGET = 1e-12


def trains(mixed: MixedAttention) -> bool:
    """Whether a layer has a memory beside a window."""
    return mixed.memory is not None and isinstance(mixed.attention, WindowMixer)


def matching_loss(
    mixed: MixedAttention, x: Tensor, full: Tensor, layout: Layout, first: int
) -> Tensor:
    """The normalised squared error of one layer.

    Args:
        x: [R, N, D], what enters the attention; ``full``: [R, N, D], its output without a window.
        first: the position from which on errors count.
    """
    assert mixed.memory is not None
    state = mixed.init_state(x.shape[0], x.dtype, x.device)
    wide = accumulation_dtype(x.dtype)
    with torch.no_grad():
        windowed, _, features = mixed.attention.attend(
            x, state.attention, layout, mixed.memory.reads_features
        )
        lost = (full - windowed)[:, first:].to(wide)
    assert state.memory is not None
    remembered, _ = mixed.memory(x, state.memory, layout, features)
    said = (mixed.alpha.to(x.dtype) * remembered.to(x.dtype))[:, first:].to(wide)
    return (said - lost).square().sum() / lost.square().sum().clamp_min(SMALLEST_TARGET)


def match_layers(
    model: AllMemForCausalLM, ids: Tensor, first: int, only: Iterable[int] | None = None
) -> dict[int, float]:
    """Let the teacher read ``ids`` [B, T] and add every layer's gradient to its memory's.

    Args:
        first: the position from which on errors count.
        only: train these layers and leave the others alone.

    Returns:
        The loss of every layer.
    """
    wanted = None if only is None else set(only)
    losses: dict[int, float] = {}

    def observe(mixed: MixedAttention, x: Tensor, full: Tensor, layout: Layout) -> None:
        if not trains(mixed) or (wanted is not None and mixed.layer not in wanted):
            return
        with torch.enable_grad():
            loss = matching_loss(mixed, x, full, layout, first)
            loss.backward()
        losses[mixed.layer] = float(loss.detach())

    with torch.no_grad():
        model.hidden_states(ids, full_attention=True, observe=observe)
    return losses
