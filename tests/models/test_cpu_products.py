"""The faster products give what the others give."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import allmem
from allmem.models.cpu_products import fast_products
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
    fast_products(head, head)
    x = torch.randn(3, 7, 6, dtype=torch.float64, requires_grad=True)
    got, expected = head(x[where]), plain(x[where])
    assert torch.equal(got, expected)
    assert head.strides == torch.empty(x[where].shape).stride()
    (gradient,) = torch.autograd.grad(got.sum(), x)
    (right,) = torch.autograd.grad(expected.sum(), x)
    assert torch.equal(gradient, right)


def test_a_whole_tensor_is_not_copied() -> None:
    head = nn.Identity()
    fast_products(head, head)
    x = torch.randn(2, 3, 4)
    assert head(x) is x


def test_it_is_done_once_to_a_model() -> None:
    model = allmem.convert(base_model(), window=5, sinks=1, chunk=4)
    head = model.get_output_embeddings()
    before = len(head._forward_pre_hooks)
    fast_products(model, head)
    assert before == len(head._forward_pre_hooks) == 2
    ids = text(2, 9)
    with torch.no_grad():
        whole = model(ids).logits
        last = model(ids, logits_to_keep=2).logits
    torch.testing.assert_close(last, whole[:, -2:], rtol=0, atol=1e-12)


class Asked(nn.Linear):
    """Keeps whether oneDNN was on when it multiplied, and fails if told so."""

    fail = False

    def forward(self, x: Tensor) -> Tensor:
        self.with_onednn = bool(torch.backends.mkldnn.enabled)
        if self.fail:
            raise ArithmeticError
        return super().forward(x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("tokens", [1, 2])
def test_a_single_token_is_multiplied_without_onednn(dtype: torch.dtype, tokens: int) -> None:
    linear = Asked(600, 500).to(dtype)
    x = torch.randn(1, tokens, 600).to(dtype)
    fast_products(linear)
    y = linear(x).detach()
    assert linear.with_onednn == (dtype == torch.float32 or tokens > 1)
    assert torch.backends.mkldnn.enabled
    exact = (x.double() @ linear.weight.double().T + linear.bias.double()).detach()
    assert float((y - exact).norm() / exact.norm()) < (4e-3 if dtype == torch.bfloat16 else 1e-6)


def test_onednn_is_on_again_after_an_error() -> None:
    linear = Asked(6, 5).bfloat16()
    linear.fail = True
    fast_products(linear)
    with pytest.raises(ArithmeticError):
        linear(torch.zeros(1, 6, dtype=torch.bfloat16))
    assert not linear.with_onednn
    assert torch.backends.mkldnn.enabled


def test_onednn_stays_off_for_those_who_switched_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    linear = nn.Linear(6, 5).bfloat16()
    fast_products(linear)
    linear(torch.zeros(1, 6, dtype=torch.bfloat16))
    assert not torch.backends.mkldnn.enabled
