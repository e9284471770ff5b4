"""The rule of Titans (``titans.py``): momentum and forgetting token by token, in the dual form.

With T_ti = (1 - alpha_{i+1}) ... (1 - alpha_t) and E_ij = eta_{j+1} ... eta_i, and from weights W
and momentum S before the first token,

    W_t = T_t0 W + (sum_i T_ti E_i0) S - sum_j (T E)_tj theta_j dl_j/dW

Letters: R rows, N slots of a call, H heads, d size of keys, dv of values, n tokens of a round.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from allmem.layout import Layout
from allmem.memory.rounds import assemble, choose, walk
from allmem.memory.state import FastWeights
from allmem.mixers.fast_mlp import FastMLP
from allmem.state import State

__all__ = ["TitansMemory", "TitansRates", "titans_rule"]


@dataclass
class TitansMemory(State):
    """All in the accumulation dtype: {matrix: [R, H, out, in]}."""

    weights: FastWeights
    """W after the last token."""
    momentum: FastWeights
    """S after the last token."""
    anchor: FastWeights
    """W at the start of the open mini-batch, where its gradients are taken."""


@dataclass(frozen=True)
class TitansRates:
    """Of every token, [R, H, N, 1] each; all zero for a token that changes nothing."""

    theta: Tensor
    log_eta: Tensor
    log_keep: Tensor
    """log(1 - alpha)."""
    writes: Tensor
    """1 for a token that writes: without one, momentum goes nowhere either."""


def titans_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rates: TitansRates,
    network: FastMLP,
    mini_batch: int,
    memory: TitansMemory,
    layout: Layout,
) -> tuple[Tensor, TitansMemory]:
    """Write every token and read it.

    Args:
        q, k: [R, H, N, d]; v: [R, H, N, dv].
        memory: its open mini-batch holds ``layout.start % mini_batch`` tokens.

    Returns:
        M(q_t; W_t), [R, H, N, dv], and the memory after the call.
    """
    rounds = layout.rounds(mini_batch)
    pieces = []
    sequences = (q, k, v, rates.theta, rates.log_eta, rates.log_keep, rates.writes)
    for step, tokens in walk(rounds, *sequences):
        q_now, k_now, v_now, theta, log_eta, log_keep, writes = tokens
        gradients = network.gradients(k_now, v_now, memory.anchor, torch.sub)
        kept, decayed = _products(log_keep), _products(log_eta)  # T and E, [R, H, n, n]
        kept_from_start, decayed_from_start = (x.cumsum(2).exp() for x in (log_keep, log_eta))
        written = kept * writes.mT
        coefficients = written @ decayed * theta.mT
        momentum_part = written @ decayed_from_start  # [R, H, n, 1]
        stored = [(kept_from_start, memory.weights), (momentum_part, memory.momentum)]
        pieces.append(network.read(q_now, stored, gradients, coefficients))

        new = network.total(gradients, coefficients[:, :, -1:].mT)
        surprise = network.total(gradients, decayed[:, :, -1:].mT * theta)
        last_kept, last_part, last_decayed = (
            x[:, :, -1:] for x in (kept_from_start, momentum_part, decayed_from_start)
        )
        memory = TitansMemory(
            {
                name: last_kept * w + last_part * memory.momentum[name] - new[name]
                for name, w in memory.weights.items()
            },
            {name: last_decayed * s - surprise[name] for name, s in memory.momentum.items()},
            memory.anchor,
        )
        if step.some_close:
            closed = TitansMemory(memory.weights, memory.momentum, memory.weights)
            memory = closed if step.all_close else choose(step.closes, closed, memory)
    return (assemble(pieces, rounds, layout) if rounds else torch.zeros_like(v)), memory


def _products(logarithms: Tensor) -> Tensor:
    """a_{j+1} ... a_t for j <= t, else 0: [R, H, n, 1] logarithms to [R, H, n, n].

    Each run is added up by itself: as the difference of two sums from the start, the weak ones
    would drown in the rounding of a strong one before them.
    """
    n = logarithms.shape[2]
    past = torch.ones(n, n, dtype=torch.bool, device=logarithms.device).tril()
    runs = torch.where(past.tril(-1), logarithms, 0).cumsum(2)
    return runs.masked_fill(~past, -torch.inf).exp()
