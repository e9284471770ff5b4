"""Memory heads that start beside single query heads, centred."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from allmem.distill import distill
from allmem.distill.calibrating import Calibrator, check_calibrates
from allmem.errors import AllMemError
from allmem.models.cache import AllMemCache
from allmem.models.conversion import convert
from allmem.models.modeling import AllMemForCausalLM
from allmem.models.structure import attention_weights
from tests.distill.tiny import (
    S,
    T,
    W,
    make_base,
    make_batch,
    make_config,
    make_held_out,
    make_model,
    make_rows,
    make_text,
)

MEMORY: dict[str, Any] = {"heads": 2, "head_dim": 6, "conv": 0}
"""The tiny model's attention has four heads of 6."""


def calibrated(model: AllMemForCausalLM, rows: int = 8) -> Calibrator:
    calibrator = Calibrator()
    ids = make_text(rows * T, seed=5).view(rows, T)
    for part in ids.split(2):
        calibrator.step(model, *make_batch(part), AllMemCache(model.config))
    calibrator.start(model)
    return calibrator


def make_other(mixer: str) -> AllMemForCausalLM:
    """A tiny model with memories of another kind, beside query heads of their size."""
    if mixer == "allmem":
        return make_model(random=False, memory=MEMORY)
    options: dict[str, Any] = {"heads": 2, "key_dim": 6, "conv": 0}
    if mixer not in ("ttt_linear", "titans"):
        options["value_dim"] = 6
    return convert(make_base(), window=W, sinks=S, mixers=mixer, mixer_options={mixer: options})


def entering(model: AllMemForCausalLM, ids: Tensor) -> dict[int, Tensor]:
    """[tokens, D]: what enters every layer's attention."""
    seen: dict[int, Tensor] = {}

    def observe(mixed: Any, x: Tensor, full: Tensor, layout: Any) -> None:
        seen[mixed.layer] = x.flatten(0, 1)

    with torch.no_grad():
        model.hidden_states(ids, full_attention=True, observe=observe)
    return seen


@pytest.mark.parametrize("mixer", ["allmem", "gated_deltanet", "mamba2", "ttt_linear", "titans"])
def test_queries_and_keys_start_centred_and_otherwise_as_the_heads_they_stand_beside(
    mixer: str,
) -> None:
    model = make_other(mixer)
    heads = calibrated(model).heads
    ids = make_text(8 * T, seed=5).view(8, T)
    for layer, x in entering(model, ids).items():
        mixed = model.mixers()[layer]
        memory: Any = mixed.memory
        unit: Any = memory.unit if mixer == "allmem" else memory.shell
        own = attention_weights(mixed.attention.core, mixed.attention.shape)
        assert len(set(heads[layer])) == 2
        for slot, head in enumerate(heads[layer]):
            here = slice(slot * 6, slot * 6 + 6)
            sources = {"q": (own.q, head), "k": (own.k, head // 2)}
            for name, (matrix, number) in sources.items():
                assert matrix is not None
                source = x @ matrix[number * 6 : number * 6 + 6].T
                found = x @ getattr(unit.projections, name).weight[here].T
                # Nearly all of the mean is gone, and what varies has stayed.
                assert found.mean(0).norm() < 0.2 * source.mean(0).norm()
                change = (found - found.mean(0)) - (source - source.mean(0))
                assert change.norm() < 0.6 * (source - source.mean(0)).norm()
            assert own.v is not None
            assert own.o is not None
            key = slice(head // 2 * 6, head // 2 * 6 + 6)
            assert torch.equal(unit.projections.v.weight[here], own.v[key])
            query = slice(head * 6, head * 6 + 6)
            assert torch.equal(unit.projections.o.weight[:, here], own.o[:, query])
        assert bool((mixed.alpha == 1).all())


def test_the_head_that_loses_is_the_one_that_is_chosen() -> None:
    model = make_model(random=False, memory={**MEMORY, "heads": 1})
    with torch.no_grad():
        for mixed in model.mixers():
            # Only head 2 says anything.
            weight: Tensor = mixed.attention.core.o_proj.weight
            weight[:, :12] = 0
            weight[:, 18:] = 0
    assert calibrated(model).heads == {0: [2], 1: [2]}


def test_more_memory_heads_than_query_heads_begin_again() -> None:
    model = make_model(random=False, memory={**MEMORY, "heads": 6})
    for chosen in calibrated(model).heads.values():
        assert sorted(chosen[:4]) == [0, 1, 2, 3]
        assert chosen[4:] == chosen[:2]


def test_the_order_of_the_rows_does_not_matter() -> None:
    ids = make_text(4 * T, seed=5).view(4, T)
    models = [make_model(random=False, memory=MEMORY) for _ in range(2)]
    for model, order in zip(models, (ids, ids.flip(0)), strict=True):
        calibrator = Calibrator()
        for row in order.split(1):
            calibrator.step(model, *make_batch(row), AllMemCache(model.config))
        calibrator.start(model)
    for one, other in zip(*(m.memory_parameters().values() for m in models), strict=True):
        torch.testing.assert_close(one, other)


def test_a_run_begins_with_it_and_reports_it() -> None:
    stages = []
    model = make_model(dtype=torch.float32, random=False, memory=MEMORY)
    config = make_config(calibrate_steps=2, stage="both", steps=4)
    distill(model, make_rows(), make_held_out(1), config, on_step=lambda s: stages.append(s.stage))
    assert stages == ["calibrate"] * 2 + ["match"] * 2 + ["kl"] * 2


@pytest.mark.parametrize(
    ("memory", "named"),
    [
        ({"heads": 2, "head_dim": 8}, "head_dim = 6"),
        ({"head_dim": 6, "projections": "lowrank", "rank": 3}, "projections = full"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(memory: dict[str, Any], named: str) -> None:
    with pytest.raises(AllMemError, match=named):
        check_calibrates(make_model(memory=memory))
    with pytest.raises(AllMemError, match="no layer has a memory"):
        check_calibrates(make_model(mixers="window"))
    options = {"gated_deltanet": {"heads": 2, "key_dim": 6, "value_dim": 12}}
    wide = convert(make_base(), window=W, sinks=S, mixers="gated_deltanet", mixer_options=options)
    with pytest.raises(AllMemError, match="needs value_dim = 6"):
        check_calibrates(wide)
