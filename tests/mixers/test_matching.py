"""Sizes at which memories have as many parameters and bytes as another one."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

import allmem
from allmem import AllMemError
from allmem.choices import Limits
from allmem.config import WindowConfig
from allmem.memory.projections import AttentionWeights
from allmem.mixers.matching import Counted, Slot, count, match
from allmem.mixers.registry import memory_kind, mixer_names
from tests.cli.conftest import make_base

SLOTS = {
    "recall": Slot(128, AttentionWeights(4, 2, 32), WindowConfig(32), chunk=32),
    "three-heads": Slot(192, AttentionWeights(9, 3, 32), WindowConfig(48, 4), chunk=16),
}
REFERENCE: dict[str, Any] = {"head_dim": 32, "width": 48}
UNMATCHABLE: dict[str, str] = {}
"""Mixer -> why it cannot have the reference's sizes, in the words of the error."""


def _own(name: str) -> bool:
    """Whether it is a memory of the library's own: other tests register theirs."""
    kind = memory_kind(name)
    return kind is not None and kind.config.__module__.startswith("allmem.")


MEMORIES = [name for name in mixer_names() if _own(name)]


@pytest.mark.parametrize("slot", SLOTS.values(), ids=SLOTS)
@pytest.mark.parametrize("name", MEMORIES)
def test_every_memory_gets_the_sizes_of_the_paper_s(name: str, slot: Slot) -> None:
    target = count("allmem", REFERENCE, slot)
    if name in UNMATCHABLE:
        with pytest.raises(AllMemError, match=UNMATCHABLE[name]):
            match(name, slot, target)
        return
    found = match(name, slot, target)
    counted = count(name, found.options, slot)
    assert counted == found.counted
    assert abs(counted.state_bytes / target.state_bytes - 1) <= 0.05
    if counted.trainable:
        assert abs(counted.parameters / target.parameters - 1) <= 0.02


@pytest.mark.parametrize("name", ["ahn_mamba2", "ahn_gated_deltanet", "gla"])
def test_what_leaves_a_wide_window_can_be_written_at_equal_sizes(name: str) -> None:
    """Beside a window of 4096 of a model as Qwen3-0.6B, where hidden states that wait would be more
    than the paper's whole state."""
    attention, window = AttentionWeights(16, 8, 128), WindowConfig(4096, 4)
    slot = Slot(1024, attention, window, chunk=2048, dtype=torch.bfloat16)
    target = count("allmem", {}, slot)
    assert target.state_bytes < 4096 * 1024 * 2
    options = {"write_scope": "evicted", "projections": "shared"}
    found = match(name, slot, target, {} if name.startswith("ahn") else options)
    assert found.within(Limits())


def test_what_is_counted_is_what_a_conversion_adds() -> None:
    """In a model with weights, alpha included."""
    base = make_base(61)
    slot = Slot(32, AttentionWeights(4, 2, 8), WindowConfig(16, 2), chunk=8)
    target = count("allmem", {}, slot)
    found = match("gated_deltanet", slot, target)
    options = {"gated_deltanet": found.options}
    model = allmem.convert(base, window=16, sinks=2, mixers="gated_deltanet", mixer_options=options)
    layers = model.mixers()
    assert len(layers) == 2
    for mixed in layers:
        own = sum(p.numel() for p in mixed.slow_parameters().values())
        assert own == found.counted.parameters
        assert mixed.memory is not None
        assert mixed.memory.state_bytes(50, torch.float32) == found.counted.state_bytes


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("name", ["deltanet", "allmem"])
def test_sizes_that_exist_are_found(name: str, number: int) -> None:
    """Or others that are as good."""
    slot = Slot(32, AttentionWeights(4, 2, 8), WindowConfig(16), chunk=8)
    draw = random.Random(number)
    kind = memory_kind(name)
    assert kind is not None
    first, second = kind.config.state_sizes
    size = draw.randrange(8, 40)
    drawn = {first: size, second: round(size * draw.uniform(0.6, 1.7))}
    if number % 2:
        drawn |= {"projections": "lowrank", "rank": draw.randrange(4, 16)}
    found = match(name, slot, count(name, drawn, slot))
    assert found.within(Limits())


def test_fixed_options_stay_and_the_others_are_solved_for() -> None:
    slot = SLOTS["recall"]
    target = count("allmem", REFERENCE, slot)
    fixed = {"value_dim": 60, "conv": 2, "projections": "full"}
    found = match("gated_deltanet", slot, target, fixed, strict=False)
    assert found.options.items() >= fixed.items()
    assert set(found.sizes) == {"key_dim"}
    assert abs(found.state_difference) <= 0.05
    free = match("gated_deltanet", slot, target)
    assert free.options["projections"] == "lowrank"


def test_projections_stay_full_where_the_sizes_of_the_state_suffice() -> None:
    slot = SLOTS["recall"]
    target = count("allmem", REFERENCE, slot)
    found = match("allmem", slot, target, {"momentum": False})
    assert set(found.sizes) == {"head_dim", "width"}
    # Two copies of the fast weights in place of three.
    assert found.sizes["width"] > REFERENCE["width"]


def test_what_cannot_be_matched_is_refused_with_the_nearest_sizes() -> None:
    slot = SLOTS["recall"]
    target = count("allmem", REFERENCE, slot)
    fixed = {"key_dim": 8, "value_dim": 8, "projections": "full"}
    with pytest.raises(AllMemError) as error:
        match("deltanet", slot, target, fixed)
    nearest = match("deltanet", slot, target, fixed, strict=False)
    for said in (
        "deltanet cannot be matched",
        f"{target.parameters:,} parameters",
        f"{nearest.counted.state_bytes:,} bytes",
        f"({nearest.state_difference:+.1%})",
        "2% and 5%",
    ):
        assert said in str(error.value)
    assert not nearest.within(Limits())
    assert nearest.within(Limits(parameters=10, state=10))


def test_a_target_without_training_is_matched_by_its_bytes_alone() -> None:
    slot = SLOTS["recall"]
    target = Counted(1, count("allmem", REFERENCE, slot).state_bytes, trainable=False)
    found = match("deltanet", slot, target)
    assert found.parameter_difference == 0
    assert "projections" not in found.options


def test_a_linear_network_is_as_wide_as_its_heads() -> None:
    slot = SLOTS["recall"]
    target = count("allmem", REFERENCE, slot)
    found = match("allmem", slot, target, {"network": "linear"})
    assert found.sizes["width"] == found.sizes["head_dim"]
    with pytest.raises(AllMemError, match="width = 9 must be head_dim = 8; leave it out"):
        count("allmem", {"network": "linear", "head_dim": 8, "width": 9}, slot)


@pytest.mark.parametrize("slot", SLOTS.values(), ids=SLOTS)
def test_the_reference_is_matched_by_itself(slot: Slot) -> None:
    target = count("allmem", REFERENCE, slot)
    found = match("allmem", slot, target, REFERENCE)
    assert found.counted == target
    assert found.sizes == {}


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: match("deltanett", SLOTS["recall"], Counted(1, 1)), "did you mean 'deltanet'"),
        (
            lambda: match("deltanet", SLOTS["recall"], Counted(1, 1), {"key_dims": 3}),
            "did you mean 'key_dim'",
        ),
        (lambda: match("window", SLOTS["recall"], Counted(1, 1)), "'window' has no memory"),
        (lambda: Limits(state=-1), "state = -1 must be 0 or more"),
    ],
)
def test_bad_input(call: Any, said: str) -> None:
    with pytest.raises(AllMemError, match=said):
        call()
