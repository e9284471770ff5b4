"""Forward KL from teacher to student, block by block over the positions.

The logits of neither model ever exist as a whole: a block of hidden states goes through the
language-model head, and the gradient with respect to the student's hidden states is worked out at
once. Equal to the dense loss in value and gradient. Knows nothing of models; the head is any
function that is frozen and takes positions independently.

Letters: B batch, T slots, D hidden size, n positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from allmem.errors import AllMemError

__all__ = ["Head", "forward_kl", "log_probabilities"]

Head = Callable[[Tensor], Tensor]
"""[n, D] to logits [n, V]; frozen."""

BLOCK = 256
"""Positions per block: two fp32 blocks of logits over 150k words stay below 400 MB."""


def log_probabilities(head: Head, hidden: Tensor) -> Tensor:
    """log p of every word, [n, V], in fp32 at least."""
    logits = head(hidden)
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def forward_kl(
    teacher: Tensor,
    student: Tensor,
    head: Head,
    mask: Tensor | None = None,
    block: int = BLOCK,
) -> Tensor:
    """Mean over positions of KL(teacher || student) (paper section 3.3.2).

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
    return _BlockwiseKL.apply(student, teacher.detach(), head, block)


class _BlockwiseKL(torch.autograd.Function):
    """Mean KL whose backward pass only scales a gradient that the forward pass left ready."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, head: Head, block: int) -> Tensor:
        wants_gradient = ctx.needs_input_grad[0]
        gradient = torch.empty_like(student) if wants_gradient else None
        total = torch.zeros((), dtype=torch.float64, device=student.device)
        for first in range(0, len(student), block):
            here = slice(first, first + block)
            with torch.no_grad():
                expected = log_probabilities(head, teacher[here])
                weight = expected.exp()
            with torch.set_grad_enabled(wants_gradient):
                leaf = student[here].detach().requires_grad_(wants_gradient)
                found = log_probabilities(head, leaf)
                kl = (weight * (expected - found)).sum()
            total += kl.detach().double()
            if gradient is not None:
                gradient[here] = torch.autograd.grad(kl, leaf)[0] / len(student)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        dtype = torch.promote_types(student.dtype, torch.float32)
        return (total / len(student)).to(dtype)

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * outer.to(gradient.dtype), None, None, None
