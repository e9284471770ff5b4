"""Rates and groups of the outer optimiser."""

from __future__ import annotations

import pytest
import torch

from allmem.distill.optimizer import Masters, make_optimizer, parameter_groups, warmup_stable_decay
from allmem.errors import AllMemError
from tests.distill.tiny import make_model


@pytest.mark.parametrize(
    ("progress", "factor"),
    [(0, 0), (0.025, 0.5), (0.05, 1), (0.5, 1), (0.7, 1), (0.85, 0.5), (1, 0)],
)
def test_the_rate_rises_stays_and_falls(progress: float, factor: float) -> None:
    assert warmup_stable_decay(progress, 0.05, 0.3) == pytest.approx(factor)


def test_without_warmup_or_decay_the_rate_is_level() -> None:
    assert [warmup_stable_decay(p, 0, 0) for p in (0, 0.5, 1)] == [1, 1, 1]


def test_groups_hold_every_weight_once_and_decay_only_matrices() -> None:
    parameters = make_model().memory_parameters()
    groups = parameter_groups(parameters, 1e-3, 1e-2, 0.1)
    names = [name for group in groups for name in group["names"]]
    assert sorted(names) == sorted(parameters)
    for group in groups:
        for name in group["names"]:
            assert (group["peak"] == 1e-2) == name.endswith("alpha")
            kept = any(part in name for part in ("bias", "norm", "initial", "alpha", "convolution"))
            assert (group["weight_decay"] == 0) == kept, name


def test_bf16_weights_have_fp32_masters() -> None:
    model = make_model(dtype=torch.bfloat16)
    model.freeze_base()
    masters = Masters(model.memory_parameters())
    assert {w.dtype for w in masters.weights.values()} == {torch.float32}
    name = next(n for n in masters.weights if n.endswith("q.weight"))
    parameter = model.memory_parameters()[name]
    before = masters.weights[name].clone()
    optimizer = make_optimizer(masters.weights, 1e-5, 1e-5, 0.0)
    for _ in range(3):
        parameter.grad = torch.ones_like(parameter)
        masters.take_gradients()
        optimizer.step()
        masters.publish()
    assert parameter.grad is None
    # Three steps of 1e-5 are too small for bf16, and are not lost.
    torch.testing.assert_close(masters.weights[name], before - 3e-5, rtol=0, atol=1e-6)
    assert torch.equal(parameter, masters.weights[name].bfloat16())


def test_wide_weights_are_their_own_masters() -> None:
    parameters = make_model(dtype=torch.float32).memory_parameters()
    masters = Masters(parameters)
    assert all(masters.weights[name] is p for name, p in parameters.items())


def test_a_model_without_memories_cannot_be_trained() -> None:
    with pytest.raises(AllMemError, match="nothing to train"):
        Masters({})
