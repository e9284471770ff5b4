"""The blockwise KL is the dense one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from allmem.distill.losses import forward_kl
from allmem.errors import AllMemError


def dense_kl(teacher: Tensor, student: Tensor, weight: Tensor, mask: Tensor | None) -> Tensor:
    p, q = (torch.log_softmax(h @ weight.mT, -1) for h in (teacher, student))
    kl = (p.exp() * (p - q)).sum(-1)
    return kl.mean() if mask is None else kl[mask].mean()


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize(("length", "block"), [(1, 4), (7, 4), (8, 4), (13, 5), (13, 100)])
def test_blocks_give_the_dense_loss_and_gradient(length: int, block: int, masked: bool) -> None:
    teacher, student = torch.randn(2, 3, length, 6, dtype=torch.float64).unbind()
    weight = torch.randn(11, 6, dtype=torch.float64)
    mask = torch.rand(3, length) < 0.6 if masked else None
    if mask is not None:
        mask[0, 0] = True
    results = []
    for blockwise in (True, False):
        leaf = student.clone().requires_grad_()
        if blockwise:
            loss = forward_kl(teacher, leaf, lambda h: h @ weight.mT, mask, block)
        else:
            loss = dense_kl(teacher, leaf, weight, mask)
        # A factor after the loss, since a trainer may scale it.
        (3 * loss).backward()
        results.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-14)


def test_half_precision_is_summed_in_fp32() -> None:
    teacher, student = torch.randn(2, 600, 6).bfloat16().unbind()
    weight = torch.randn(11, 6).bfloat16()
    loss = forward_kl(teacher, student, lambda h: h @ weight.mT, block=64)
    logits = [(h @ weight.mT).double() for h in (teacher, student)]
    p, q = (x.log_softmax(-1) for x in logits)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), (p.exp() * (p - q)).sum(-1).mean(), rtol=1e-5, atol=0)


def test_no_gradient_reaches_the_teacher() -> None:
    teacher, student = torch.randn(2, 5, 6).unbind()
    teacher.requires_grad_()
    forward_kl(teacher, student.requires_grad_(), lambda h: h @ torch.ones(6, 9)).backward()
    assert teacher.grad is None


def test_a_loss_over_nothing_is_an_error() -> None:
    with pytest.raises(AllMemError, match="counts no position"):
        forward_kl(torch.zeros(1, 0, 6), torch.zeros(1, 0, 6), lambda h: h)
