"""The closed form of a training step's memory against the tensors that a step really has."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from allmem.cost.training import TrainingMemory, training_memory
from allmem.distill import Distillation, DistillConfig
from allmem.distill.config import Objective
from allmem.distill.optimizer import make_optimizer
from allmem.distill.precision import training_weights
from allmem.distill.sizes import Sizes
from allmem.errors import AllMemError
from allmem.models.cache import AllMemCache
from allmem.models.modeling import AllMemForCausalLM
from tests.distill.tiny import C, S, T, W, make_batch, make_model, make_text

SIZES = Sizes(W, S, C)
SEGMENT = 4 * C


def predicted(length: int = 16 * SEGMENT, **settings: Any) -> TrainingMemory:
    model = make_model()
    return training_memory(model.config, length, dtype=torch.float64, **settings)


def nbytes(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def saved_bytes(model: AllMemForCausalLM, batch: dict[str, Tensor]) -> int:
    """What autograd keeps of a step's forward pass, weights apart."""
    seen = {p.untyped_storage().data_ptr() for p in model.parameters()}
    # Kept alive, so that no storage takes the address of another.
    kept = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            kept.append(storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        total, _ = Distillation(model, DistillConfig(steps=1))(**batch, sizes=SIZES)
    assert total.requires_grad
    return sum(storage.nbytes() for storage in kept)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_weights_and_moments_are_those_of_the_model(dtype: torch.dtype) -> None:
    model = make_model(dtype=dtype)
    parts = training_memory(model.config, T, dtype=dtype)
    with training_weights(model):
        slow = model.memory_parameters()
        ours = {id(p) for p in slow.values()}
        assert parts.frozen == nbytes(p for p in model.parameters() if id(p) not in ours)
        assert parts.slow == nbytes(slow.values())
        for parameter in slow.values():
            parameter.grad = torch.zeros_like(parameter)
        assert parts.gradients == nbytes(p.grad for p in slow.values())
        optimizer = make_optimizer(slow, 1e-3, 1e-3, 0.0)
        optimizer.step()
        moments = [
            state[n] for state in optimizer.state.values() for n in ("exp_avg", "exp_avg_sq")
        ]
        assert parts.moments == nbytes(moments)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("segment", [None, 7, SEGMENT, 1000])
def test_states_are_those_of_the_cache(rows: int, segment: int | None) -> None:
    model = make_model()
    cache = AllMemCache(model.config)
    with torch.no_grad():
        model(make_text(rows * T).view(rows, T), past_key_values=cache)
    parts = predicted(T, batch=rows, segment=segment)
    assert parts.states == -(-T // (segment or T)) * cache.nbytes


def test_targets_are_the_hidden_states_that_count() -> None:
    batch, counts = make_batch(make_text(2 * T).view(2, T))
    model = make_model()
    target = Distillation(model, DistillConfig(steps=1)).teacher(batch, counts)
    assert predicted(T, batch=2).targets == nbytes([target.hidden])  # type: ignore[union-attr]


def test_in_segments_only_states_targets_and_teacher_grow_with_the_text() -> None:
    for checkpoint_layers in (False, True):
        short, long = (
            predicted(n * SEGMENT, segment=SEGMENT, checkpoint_layers=checkpoint_layers)
            for n in (8, 16)
        )
        assert long.states == 2 * short.states
        grown = {"states": long.states, "targets": long.targets, "teacher": long.teacher}
        assert replace(short, **grown) == long
    assert predicted(16 * SEGMENT).activations > 1.9 * predicted(8 * SEGMENT).activations


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"length": 200}, {"length": 400}),
        ({"length": 400, "segment": 20}, {"length": 400, "segment": 100}),
        ({"batch": 1}, {"batch": 2}),
        ({"checkpoint_layers": True}, {"checkpoint_layers": False}),
        ({"segment": SEGMENT}, {"segment": None}),
        ({"sizes": Sizes(W, S, C)}, {"sizes": Sizes(2 * W, S, C)}),
        ({"objective": Objective(block=1)}, {"objective": Objective(block=256)}),
    ],
    ids=", ".join,
)
def test_more_takes_more(less: dict[str, Any], more: dict[str, Any]) -> None:
    assert predicted(**less).student < predicted(**more).student
    assert predicted(**less).total <= predicted(**more).total


def test_the_total_is_what_is_there_at_one_time() -> None:
    parts = predicted(segment=SEGMENT, checkpoint_layers=True)
    assert all(value >= 0 for value in asdict(parts).values())
    assert parts.held + parts.states < parts.total <= sum(asdict(parts).values())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "memory",
    [
        {},
        {"network": "linear"},
        {"conv": 0},
        {"gate": False, "normalize_values": False},
        {"output_norm": False},
        {"momentum": False, "clip": None},
        {"norm": "none"},
        {"norm": "post_update"},
        {"optimizer": "muon"},
        {"qk_norm": "l2", "value_activation": True},
        {"projections": "shared", "rank": 4},
    ],
    ids=str,
)
def test_what_autograd_keeps_is_foreseen(memory: dict[str, object], dtype: torch.dtype) -> None:
    length = 240
    model = make_model(dtype=dtype, memory=memory)
    batch, counts = make_batch(make_text(length)[None])
    with training_weights(model):
        found = saved_bytes(model, batch)
    parts = training_memory(model.config, length, dtype=dtype, counted=int(counts.sum()))
    foreseen = parts.activations + parts.copies
    assert 0.95 * found < foreseen < 1.2 * found


def test_layers_that_are_not_counted_are_refused() -> None:
    model = make_model(mixers="allmem,full")
    with pytest.raises(AllMemError, match="FullMixer"):
        training_memory(model.config, T)
