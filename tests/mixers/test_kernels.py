"""Who computes a recurrence: when kernels are asked for, what they are given, and what they give on
a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from allmem import kernels as choice
from allmem.errors import AllMemError
from allmem.kernels import use_kernels
from allmem.mixers import kernels
from tests.mixers.test_recurrence import RULES, D, Inputs, fla_delta, fla_linear, inputs, ours

BF16 = torch.bfloat16
NAMES = {
    ("linear", None): "simple_gla",
    ("linear", "head"): "simple_gla",
    ("linear", "channel"): "gla",
    ("delta", None): "delta_rule",
    ("delta", "head"): "gated_delta_rule",
    ("delta", "channel"): "kda",
}


class Reference:
    """fla's plain reference behind the signature of the kernel."""

    def __init__(self, name: str) -> None:
        self.name, self.calls = name, 0

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor | None = None,
        beta: Tensor | None = None,
        *,
        scale: float,
        initial_state: Tensor,
        output_final_state: bool,
    ) -> tuple[Tensor, Tensor]:
        self.calls += 1
        assert output_final_state
        assert q.dtype == k.dtype == v.dtype == BF16
        assert initial_state.dtype == torch.float32
        assert beta is None or beta.dtype == BF16
        decay = None if g is None else ("channel" if g.dim() == 4 else "head")
        # The references have a scale of d^-1/2 of their own, and here their arguments the other
        # way round.
        given = {
            "q": q.float() * scale * D**0.5,
            "k": k.float(),
            "v": v.float(),
            "rate": torch.empty(*q.shape[:3]) if beta is None else beta.float(),
        } | ({} if g is None else {str(decay): g})
        given = {name: x.transpose(1, 2) for name, x in given.items()} | {"state": initial_state}
        y, state = (fla_linear if beta is None else fla_delta)(given, decay)
        return y.transpose(1, 2).to(q.dtype), state


@pytest.fixture(autouse=True)
def _installed_or_not() -> Iterator[None]:
    """What a test says of packages that are there is forgotten afterwards."""
    yield
    choice._read.cache_clear()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Reference]:
    """Kernels that run here, by name, once they were asked for."""
    found: dict[str, Reference] = {}
    monkeypatch.setattr(choice, "find_spec", lambda name: object())
    monkeypatch.setattr(kernels, "_on_gpu", lambda q: True)
    monkeypatch.setattr(kernels, "_kernel", lambda name: found.setdefault(name, Reference(name)))
    return found


def gradients(rule: str, decay: str | None, given: Inputs, narrow: Any) -> tuple[Tensor, ...]:
    """Outputs, state, and the gradients of q, k and v."""
    leaves = {n: x.clone().requires_grad_(n in "qkv") for n, x in given.items()}
    y, state = ours(rule, decay, leaves, narrow=narrow)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view_as(y)
    loss = (y * weights).sum() + state.square().sum()
    found = torch.autograd.grad(loss, [leaves[name] for name in "qkv"])
    return y.detach(), state.detach(), *found


@pytest.mark.parametrize(("rule", "decay"), RULES)
def test_a_kernel_that_is_asked_for_computes_what_ours_do(
    rule: str, decay: str | None, asked: dict[str, Reference]
) -> None:
    given = inputs()
    expected = gradients(rule, decay, given, BF16)
    assert not asked
    with use_kernels("fla"):
        found = gradients(rule, decay, given, BF16)
    assert {name: one.calls for name, one in asked.items()} == {NAMES[rule, decay]: 1}
    for got, right in zip(found, expected, strict=True):
        assert got.dtype == right.dtype
        assert float((got - right).norm()) < 0.01 * float(right.norm())


@pytest.mark.parametrize(("rule", "decay"), [p for p in RULES if p.values[1]])
def test_a_decay_that_forgets_everything_is_a_number_for_them(
    rule: str, decay: str, asked: dict[str, Reference]
) -> None:
    given = inputs()
    given[decay] = torch.where(given[decay] < -0.4, -torch.inf, given[decay])
    with use_kernels("fla"):
        found = ours(rule, decay, given, narrow=BF16)
    for got, right in zip(found, ours(rule, decay, given), strict=True):
        assert float((got - right).norm()) < 0.01 * float(right.norm())


@pytest.mark.parametrize("why", ["fp32", "wide-heads", "no-tokens", "not-known", "cpu"])
def test_what_they_cannot_compute_stays_with_ours(
    why: str, asked: dict[str, Reference], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = inputs(tokens=0 if why == "no-tokens" else 7)
    if why == "wide-heads":
        monkeypatch.setattr(kernels, "LARGEST", 7)
    if why == "cpu":
        monkeypatch.undo()
        monkeypatch.setattr(choice, "find_spec", lambda name: object())
    narrow = {"fp32": torch.float32, "not-known": None}.get(why, BF16)
    expected = ours("delta", "head", given)
    with use_kernels("fla"):
        found = ours("delta", "head", given, narrow=narrow)
    assert not asked
    assert all(torch.equal(got, right) for got, right in zip(found, expected, strict=True))


def test_the_environment_asks_for_them_too(
    asked: dict[str, Reference], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(choice.VARIABLE, "fla")
    ours("linear", "head", inputs(), narrow=BF16)
    assert asked["simple_gla"].calls == 1
    # What a program says counts more.
    with use_kernels("torch"):
        ours("linear", "head", inputs(), narrow=BF16)
    assert asked["simple_gla"].calls == 1


def test_unknown_and_missing_kernels_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AllMemError, match=r"flo.*did you mean 'fla'"), use_kernels("flo"):
        pass
    monkeypatch.setattr(choice, "find_spec", lambda name: None)
    with pytest.raises(AllMemError, match="pip install"), use_kernels("fla"):
        pass
    monkeypatch.setenv(choice.VARIABLE, "mamba")
    with pytest.raises(AllMemError, match=r"mamba.*torch"):
        ours("linear", "head", inputs(), narrow=BF16)


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 63, 300])
@pytest.mark.parametrize(("rule", "decay"), RULES)
def test_on_a_gpu_the_kernels_give_what_ours_give(
    rule: str, decay: str | None, tokens: int
) -> None:
    """Within 2 % of the norm, in bf16; outputs, state and gradients."""
    pytest.importorskip("triton")
    pytest.importorskip("fla")
    given = {name: x.cuda() for name, x in inputs(tokens=tokens).items()}
    expected = gradients(rule, decay, given, BF16)
    with use_kernels("fla"):
        found = gradients(rule, decay, given, BF16)
    for got, right in zip(found, expected, strict=True):
        assert float((got - right).norm()) < 0.02 * float(right.norm())
