"""Steps that begin where another text ended, or from a noisy state."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from allmem.distill import Distillation, DistillConfig
from allmem.distill.sizes import Sizes
from allmem.models.cache import AllMemCache
from allmem.models.modeling import AllMemForCausalLM
from tests.distill.tiny import C, S, T, W, make_batch, make_model, make_text

SIZES = Sizes(W, S, C)


def make(model: AllMemForCausalLM, **settings: Any) -> Distillation:
    return Distillation(model, DistillConfig(steps=1, state_share=1.0, **settings))


def batch(seed: int) -> dict[str, Tensor]:
    return make_batch(make_text(2 * T, seed).view(2, T))[0]


def test_a_step_begins_where_the_one_before_ended() -> None:
    model = make_model()
    distillation = make(model, state_init="passed")
    with torch.no_grad():
        first, _ = distillation(**batch(1), sizes=SIZES, step=0)
        second, _ = distillation(**batch(2), sizes=SIZES, step=1)
        fresh, _ = make(model, state_init="passed")(**batch(2), sizes=SIZES, step=1)
        plain, _ = make(model)(**batch(2), sizes=SIZES, step=1)
        again, _ = make(model)(**batch(1), sizes=SIZES, step=0)
    assert float(first) == pytest.approx(float(again))
    assert float(fresh) == pytest.approx(float(plain))
    assert float(second) != pytest.approx(float(plain))
    # The fast weights and momenta of the text before, and nothing else of it.
    left = distillation.beginnings.begin(AllMemCache(model.config), 2, step=2)
    ended = distillation.beginnings.passed
    assert left.states is not None
    assert ended is not None
    assert ended.states is not None
    for mixed, state, before in zip(model.mixers(), left.states, ended.states, strict=True):
        tensors = state.tensors()
        old = before.tensors()
        start = mixed.init_state(2, torch.float64, torch.device("cpu")).tensors()
        for name, tensor in tensors.items():
            carried = ".memory.weights." in f".{name}" or ".memory.momentum." in f".{name}"
            assert torch.equal(tensor, old[name] if carried else start[name]), name
            assert not carried or not torch.equal(tensor, start[name]), name


def test_rows_of_another_number_are_shared_out() -> None:
    model = make_model()
    distillation = make(model, state_init="passed")
    with torch.no_grad():
        distillation(**batch(1), sizes=SIZES, step=0)
    left = distillation.beginnings.begin(AllMemCache(model.config), 3, step=1)
    assert left.states is not None
    weights = next(t for n, t in left.states[0].tensors().items() if "weights" in n)
    assert torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[1])


def test_noise_is_a_function_of_the_step_and_in_proportion() -> None:
    model = make_model()

    def noisy(step: int, scale: float = 0.1) -> dict[str, Tensor]:
        beginnings = make(model, state_init="noise", state_noise=scale).beginnings
        states = beginnings.begin(AllMemCache(model.config), 2, step).states
        assert states is not None
        return states[0].tensors()

    start = model.mixers()[0].init_state(2, torch.float64, torch.device("cpu")).tensors()
    one, same, other = noisy(1), noisy(1), noisy(2)
    for name, tensor in one.items():
        assert torch.equal(tensor, same[name])
        if "weights" in name:
            assert not torch.equal(tensor, other[name])
            size = (tensor - start[name]).norm() / start[name].norm()
            assert 0.07 < float(size.detach()) < 0.13
        else:
            assert torch.equal(tensor, start[name])


def test_only_a_share_of_the_steps_begins_elsewhere() -> None:
    model = make_model()
    config = DistillConfig(steps=1, state_init="noise", state_share=0.3)
    beginnings = Distillation(model, config).beginnings
    cache = AllMemCache(model.config)
    begun = sum(beginnings.begin(cache, 1, step) is not cache for step in range(200))
    assert 40 < begun < 80


def test_a_checkpoint_holds_what_is_passed() -> None:
    model = make_model()
    distillation, other = (make(model, state_init="passed") for _ in range(2))
    with torch.no_grad():
        distillation(**batch(1), sizes=SIZES, step=0)
        other.beginnings.load(distillation.beginnings.tensors())
        losses = [float(d(**batch(2), sizes=SIZES, step=1)[0]) for d in (distillation, other)]
    assert losses[0] == losses[1]
