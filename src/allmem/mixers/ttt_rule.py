"""The rule of the TTT layers (``ttt.py``): gradient descent in mini-batches, in the dual form.

Letters: R rows, N slots of a call, H heads, d head size, n tokens of a round.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from allmem.layout import Layout
from allmem.memory.rounds import assemble, choose, walk
from allmem.memory.state import FastWeights
from allmem.mixers.fast_mlp import FastMLP, zeros_like
from allmem.state import State

__all__ = ["HeadLayerNorm", "TTTMemory", "ttt_rule"]

NORM_EPS = 1e-6


@dataclass
class TTTMemory(State):
    """Both in the accumulation dtype."""

    weights: FastWeights
    """W at the start of the open mini-batch: {matrix: [R, H, out, in]}."""
    gradient: FastWeights
    """sum_j r_j dl_j/dW over the open mini-batch."""


@dataclass(frozen=True)
class HeadLayerNorm:
    """LN of one call."""

    weight: Tensor
    """[H, 1, d]; so is ``bias``."""
    bias: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        """z: [R, H, n, d]."""
        return F.layer_norm(z, z.shape[-1:], eps=NORM_EPS) * self.weight + self.bias

    def error(self, z: Tensor, target: Tensor) -> Tensor:
        """The gradient of 1/2 |LN(z) - target|^2 with respect to z."""
        mean = z.mean(-1, keepdim=True)
        scale = ((z - mean).square().mean(-1, keepdim=True) + NORM_EPS).rsqrt()
        unit = (z - mean) * scale
        slope = (unit * self.weight + self.bias - target) * self.weight
        along = (slope * unit).mean(-1, keepdim=True)
        return (slope - slope.mean(-1, keepdim=True) - unit * along) * scale


def ttt_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rate: Tensor,
    token_scale: Tensor,
    norm: HeadLayerNorm,
    network: FastMLP,
    memory: TTTMemory,
    layout: Layout,
) -> tuple[Tensor, TTTMemory]:
    """Write every token and read it.

    Args:
        q, k, v: [R, H, N, d].
        rate: r, [R, H, N, 1], 0 where nothing is written.
        token_scale: s, [mini-batch].
        memory: its open mini-batch holds ``layout.start % mini-batch`` tokens.

    Returns:
        f(q_t; W_t), [R, H, N, d], and the memory after the call.
    """
    size = len(token_scale)
    rounds = layout.rounds(size)
    scales = token_scale[layout.positions % size][:, None, :, None]  # [R, 1, N, 1]
    pieces = []
    for step, tokens in walk(rounds, q, k, v, rate, scales):
        q_now, k_now, v_now, r_now, s_now = tokens
        gradients = network.gradients(k_now, v_now - k_now, memory.weights, norm.error)
        rates = (s_now * r_now.mT).tril()  # [R, H, n, n]
        stored: list[tuple[Tensor | None, FastWeights]] = [(None, memory.weights)]
        if not step.all_open:
            stored.append((-s_now, memory.gradient))
        pieces.append(network.read(q_now, stored, gradients, rates))
        total = network.total(gradients, r_now)
        memory = TTTMemory(
            memory.weights, {name: g + total[name] for name, g in memory.gradient.items()}
        )
        if step.some_close:
            closed = _close(memory, token_scale[-1])
            memory = closed if step.all_close else choose(step.closes, closed, memory)
    return (assemble(pieces, rounds, layout) if rounds else torch.zeros_like(q)), memory


def _close(memory: TTTMemory, scale: Tensor) -> TTTMemory:
    """The memory after the last token of a mini-batch."""
    return TTTMemory(
        {name: w - scale * memory.gradient[name] for name, w in memory.weights.items()},
        zeros_like(memory.gradient),
    )
