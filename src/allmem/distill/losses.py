"""The objective of distillation, block by block over the positions.

The logits of neither model ever exist as a whole: a block of hidden states goes through the
language-model head, and the gradient with respect to the student's hidden states is worked out at
once. Equal to the dense loss in value and gradient, with softmax and divergence in fp32 at least,
also under autocast. Knows nothing of models, masks and means: a head is any function that is
frozen, takes positions independently and gives finite logits; a target is the teacher's own hidden
states, or what was stored of its predictions; the caller divides the sums.

Letters: B batch, T slots, D hidden size, n positions, V vocabulary, k words kept of a prediction,
S words on which two predictions are compared; p the teacher's distribution, q the student's.
"""

from __future__ import annotations

import math
from collections.abc import Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from allmem.distill.config import Objective
from allmem.distill.targets import (
    BLOCK,
    FullTarget,
    Head,
    Target,
    log_probabilities,
)
from allmem.errors import AllMemError

__all__ = [
    "LossSums",
    "disagreement_weights",
    "distillation_loss",
    "forward_kl",
]


@dataclass(frozen=True, eq=False)
class LossSums:
    """Sums over positions, since the caller knows over how many, on all devices, to average.

    Without weights, total = kl_weight · kl + ce_weight · ce.
    """

    total: Tensor
    """Scalar, with the student's gradient: the sum of weight · (kl_weight · divergence +
    ce_weight · CE)."""
    kl: Tensor
    """Scalar, float64, detached: the sum of the divergence with its temperature squared, without
    weights."""
    ce: Tensor
    """The same of the cross-entropy; zero without labels."""


def distillation_loss(
    student: Tensor,
    head: Head,
    target: Target,
    objective: Objective,
    labels: Tensor | None = None,
    weights: Tensor | None = None,
) -> LossSums:
    """The objective summed over the positions.

    Args:
        student: [n, D], the hidden states that count; n = 0 gives zeros that are still connected
            to the graph, for a device that holds no such position.
        head: the student's.
        labels: [n] int64, the next tokens; needed for cross-entropy, and enough to have it
            reported.
        weights: [n], factors of the positions; ``None`` for 1. They get no gradient.

    Raises:
        AllMemError: if labels are missing, or something has not one entry for each position.
    """
    if objective.ce_weight > 0 and labels is None:
        raise AllMemError(
            f"ce_weight = {objective.ce_weight} needs labels; give the next tokens, or a weight "
            "of 0"
        )
    _check_positions(len(student), target=target, labels=labels, weights=weights)
    if len(student) == 0:
        zero = torch.zeros((), dtype=torch.float64, device=student.device)
        total = student.sum() * 0
        return LossSums(total.to(_at_least_fp32(student)), zero, zero.clone())
    return LossSums(*_Blockwise.apply(student, head, target, objective, labels, weights))


def forward_kl(
    teacher: Tensor,
    student: Tensor,
    head: Head,
    mask: Tensor | None = None,
    block: int = BLOCK,
) -> Tensor:
    """Mean over positions of KL(teacher || student) (paper section 3.3.2), both with one head.

    Args:
        teacher: [B, T, D], what the teacher's head reads; gets no gradient.
        student: [B, T, D].
        mask: [B, T] bool, the positions that count; ``None`` for all.
        block: positions that are worked on together.

    Raises:
        AllMemError: if no position counts.
    """
    if mask is None:
        teacher, student = teacher.flatten(0, -2), student.flatten(0, -2)
    else:
        teacher, student = teacher[mask], student[mask]
    if len(student) == 0:
        raise AllMemError("the loss counts no position; is the window as long as the sequences?")
    target = FullTarget(teacher, head)
    return distillation_loss(student, head, target, Objective(block=block)).total / len(student)


@torch.no_grad()
def disagreement_weights(
    teacher: Tensor | Target, window: Tensor, head: Head, floor: float, block: int = BLOCK
) -> Tensor:
    """Weights [n] of mean 1 that grow with KL(teacher || window), in fp32 at least.

    What the window predicts as the teacher does needs no memory: floor + (1 - floor) · KL / its
    mean over the positions, and 1 everywhere if the two never disagree.

    Args:
        teacher: [n, D], hidden states with full attention that ``head`` reads, or a target.
        window: [n, D], hidden states with the window alone.
        head: the window's.
        floor: the weight of a position where both agree.

    Raises:
        AllMemError: if ``floor`` lies outside 0 to 1, or the two differ in their positions.
    """
    if not 0 <= floor <= 1:
        raise AllMemError(f"floor = {floor} must lie between 0 and 1; 1 weights all alike")
    target = FullTarget(teacher, head) if isinstance(teacher, Tensor) else teacher
    _check_positions(len(window), target=target)
    kl = torch.zeros(len(window), dtype=_at_least_fp32(window), device=window.device)
    for first in range(0, len(window), block):
        here = slice(first, first + block)
        expected, found = target.compared(here, log_probabilities(head, window[here]))
        # Rounding can leave less than nothing.
        kl[here] = _kl(expected, found).clamp(min=0)
    mean = kl.mean()
    weights = floor + (1 - floor) * kl / mean
    return torch.where(mean > 0, weights, torch.ones_like(kl))


def _check_positions(positions: int, **others: Sized | None) -> None:
    for name, other in others.items():
        if other is not None and len(other) != positions:
            raise AllMemError(
                f"{name} has {len(other)} positions and the student {positions}; give both the "
                "positions that count"
            )


def _at_least_fp32(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) at each position, [n]; both are log-probabilities [n, S]."""
    return (p.exp() * (p - q)).sum(-1)


def _divergence(expected: Tensor, found: Tensor, objective: Objective) -> Tensor:
    """The divergence at each position, [n], times T²; both are log-probabilities [n, S]."""
    temperature = objective.temperature
    if temperature != 1:
        expected, found = ((x / temperature).log_softmax(-1) for x in (expected, found))
    if objective.divergence == "forward_kl":
        value = _kl(expected, found)
    elif objective.divergence == "reverse_kl":
        value = _kl(found, expected)
    else:
        beta = objective.jsd_beta
        mixed = torch.logaddexp(expected + math.log(beta), found + math.log1p(-beta))
        value = beta * _kl(expected, mixed) + (1 - beta) * _kl(found, mixed)
    return temperature**2 * value


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


class _Blockwise(torch.autograd.Function):
    """Sums whose backward pass only scales a gradient that the forward pass left ready."""

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        head: Head,
        target: Target,
        objective: Objective,
        labels: Tensor | None,
        weights: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wants_gradient = ctx.needs_input_grad[0]
        gradient = torch.empty_like(student) if wants_gradient else None
        # Total, divergence and cross-entropy.
        sums = torch.zeros(3, dtype=torch.float64, device=student.device)
        for first in range(0, len(student), objective.block):
            here = slice(first, first + objective.block)
            with (
                torch.set_grad_enabled(wants_gradient),
                torch.autocast(student.device.type, enabled=False),
                # Not those of a checkpoint around this call: the gradient below would make it read
                # all of its segment again, and keep it.
                torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is),
            ):
                leaf = student[here].detach().requires_grad_(wants_gradient)
                found = log_probabilities(head, leaf)
                divergence = _divergence(*target.compared(here, found), objective)
                loss = objective.kl_weight * divergence
                sums[1] += divergence.detach().sum(dtype=torch.float64)
                if labels is not None:
                    ce = -found.gather(1, labels[here, None])[:, 0]
                    sums[2] += ce.detach().sum(dtype=torch.float64)
                    if objective.ce_weight > 0:
                        loss = loss + objective.ce_weight * ce
                if weights is not None:
                    loss = loss * weights[here].detach()
                sums[0] += loss.detach().sum(dtype=torch.float64)
                if gradient is not None:
                    gradient[here] = torch.autograd.grad(loss.sum(), leaf)[0]
        if gradient is not None:
            ctx.save_for_backward(gradient)
        total, kl, ce_sum = sums[0].to(_at_least_fp32(student)), sums[1].clone(), sums[2].clone()
        ctx.mark_non_differentiable(kl, ce_sum)
        return total, kl, ce_sum

    @staticmethod
    def backward(ctx: Any, outer: Tensor, *_: Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        # A factor like 1 / n is not rounded to half precision first.
        scaled = gradient.to(_at_least_fp32(gradient)) * outer
        return scaled.to(gradient.dtype), None, None, None, None, None
