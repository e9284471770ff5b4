"""The head reads slices as if they stood on their own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import allmem
from allmem.models.head import read_slices_fast
from tests.models.tiny import base_model, text


class Watched(nn.Linear):
    """Keeps the strides of what it reads."""

    def forward(self, x: Tensor) -> Tensor:
        self.strides = x.stride()
        return super().forward(x)


SLICES = {
    "last-position": (slice(None, 1), slice(-1, None)),
    "last-positions-of-rows": (slice(None), slice(-2, None)),
    "first-row": (slice(1, 2), slice(None)),
    "nothing": (slice(None, 0), slice(None)),
}


@pytest.mark.parametrize("where", SLICES.values(), ids=SLICES.keys())
def test_a_slice_is_read_as_a_tensor_of_its_own(where: tuple[slice, slice]) -> None:
    head = Watched(6, 5, bias=False).double()
    plain = copy.deepcopy(head)
    read_slices_fast(head)
    x = torch.randn(3, 7, 6, dtype=torch.float64, requires_grad=True)
    got, expected = head(x[where]), plain(x[where])
    assert torch.equal(got, expected)
    assert head.strides == torch.empty(x[where].shape).stride()
    (gradient,) = torch.autograd.grad(got.sum(), x)
    (right,) = torch.autograd.grad(expected.sum(), x)
    assert torch.equal(gradient, right)


def test_a_whole_tensor_is_not_copied() -> None:
    head = nn.Identity()
    read_slices_fast(head)
    x = torch.randn(2, 3, 4)
    assert head(x) is x


def test_it_is_done_once_to_a_model() -> None:
    model = allmem.convert(base_model(), window=5, sinks=1, chunk=4)
    head = model.get_output_embeddings()
    read_slices_fast(head)
    assert len(head._forward_pre_hooks) == 1
    ids = text(2, 9)
    with torch.no_grad():
        whole = model(ids).logits
        last = model(ids, logits_to_keep=2).logits
    torch.testing.assert_close(last, whole[:, -2:], rtol=0, atol=1e-12)
