"""Which layers are ranked first: those that were made to matter."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import allmem
from allmem import AllMemError
from allmem.distill.evaluate import compare
from allmem.distill.rows import Row, plain_row
from allmem.mixers.registry import expand_pattern
from allmem.placing import Placement, candidates, pattern_of, place
from allmem.placing.layers import _chosen

V, W, S, T, LAYERS = 43, 8, 1, 40, 4


def made(loud: dict[int, float], **options: Any) -> allmem.AllMemForCausalLM:
    """A random model of four layers, of which some say much; converted to the window."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
    )
    base = LlamaForCausalLM(config).double().eval()
    with torch.no_grad():
        for i, layer in enumerate(base.model.layers):
            layer.self_attn.o_proj.weight.mul_(loud.get(i, 0.05))
    return allmem.convert(base, **{"window": W, "sinks": S, "mixers": "window", **options})


def rows(count: int = 3) -> list[Row]:
    generator = torch.Generator().manual_seed(1)
    return [plain_row(torch.randint(0, V, (T,), generator=generator)) for _ in range(count)]


LOUD = {1: 3.0, 3: 1.0}


@pytest.fixture(scope="module")
def found() -> Placement:
    return place(made(LOUD), rows(), keep=1, memories=1)


def test_the_layer_that_matters_most_is_kept(found: Placement) -> None:
    assert list(found.alone)[:2] == [1, 3]
    assert found.keep == [1]
    damages = [damage.kl for damage in found.alone.values()]
    assert damages == sorted(damages, reverse=True)


def test_the_next_one_is_to_have_a_memory(found: Placement) -> None:
    assert next(iter(found.restored)) == 3
    assert found.memories == [3]
    assert 1 not in found.restored
    assert found.restored[3].kl < found.kept.kl < found.converted.kl


def test_damages_are_what_a_conversion_of_those_layers_does(found: Placement) -> None:
    """Against models that are converted so."""
    cases = [
        (found.converted, {"mixers": "window"}),
        (found.alone[1], {"mixers": ["full", "window", "full", "full"]}),
        (found.kept, {"mixers": "window", "keep_full": [1]}),
        (found.restored[3], {"mixers": "window", "keep_full": [1, 3]}),
    ]
    for damage, options in cases:
        score = compare(made(LOUD, **options), rows()).memory
        assert damage.kl == pytest.approx(score.kl, rel=1e-6)
        assert damage.loss == pytest.approx(score.loss, rel=1e-6)
        assert damage.right == pytest.approx(score.accuracy)
    assert found.full.kl == 0
    assert found.positions == 3 * (T - W - 1)


def test_it_says_how_sure_a_choice_is(found: Placement) -> None:
    """Of layers that matter very differently it is sure, of such that are alike it is not."""
    assert found.sure[1] == 1
    assert 0.6 < found.sure[3] <= 1
    for damage in (found.converted, *found.alone.values(), *found.restored.values()):
        assert damage.low < damage.kl < damage.high
    assert (found.full.low, found.full.high) == (0, 0)
    drawn = torch.rand(4, 1000, generator=torch.Generator().manual_seed(0))
    alike = _chosen({i: drawn[i] - int(i == 2) for i in range(4)}, [2, 0])
    assert alike[2] == 1
    assert alike[0] == pytest.approx(1 / 3, abs=0.05)


def test_intervals_hold_what_other_texts_give() -> None:
    """Nearly all readings of other rows lie as near as two intervals of 95 % allow."""
    model = made(LOUD)
    one = place(model, rows(12), keep=0).converted
    generator = torch.Generator().manual_seed(5)
    inside = 0
    for _ in range(20):
        others = [plain_row(torch.randint(0, V, (T,), generator=generator)) for _ in range(12)]
        other = place(model, others, keep=0).converted
        halves = ((one.high - one.low) / 2, (other.high - other.low) / 2)
        inside += abs(other.kl - one.kl) < math.hypot(*halves)
    assert inside >= 16
    assert one.high - one.low < 0.5 * one.kl


def test_the_model_is_left_as_it_was() -> None:
    model = made(LOUD)
    ids = torch.arange(T)[None] % V
    with torch.no_grad():
        before = model(ids, use_cache=False).logits
        place(model, rows(1), keep=0)
        assert torch.equal(model(ids, use_cache=False).logits, before)


def test_the_same_call_gives_the_same_numbers(found: Placement) -> None:
    again = place(made(LOUD), rows(), keep=1, memories=1)
    assert dataclasses.asdict(again) == dataclasses.asdict(found)


def test_readings_are_reported() -> None:
    for keep in (0, 2):
        told: list[tuple[int, int, str]] = []
        place(made(LOUD), rows(1), keep, on_reading=lambda *now: told.append(now))  # noqa: B023
        assert [now[0] for now in told] == list(range(1, len(told) + 1))
        assert {now[1] for now in told} == {len(told)}


def test_layers_that_were_local_already_are_no_candidates() -> None:
    model = made(LOUD)
    model.config.layers = ["local", "window", "window", "window"]
    assert candidates(model) == [1, 2, 3]


@pytest.mark.parametrize(
    ("layers", "memories", "pattern"),
    [
        (4, [1], "window,allmem,window*2"),
        (4, [0, 1, 2, 3], "allmem*4"),
        (3, [], "window*3"),
        (5, [0, 4], "allmem,window*3,allmem"),
    ],
)
def test_a_proposal_is_a_pattern(layers: int, memories: list[int], pattern: str) -> None:
    assert pattern_of(layers, memories) == pattern
    names = expand_pattern(pattern, layers)
    assert [i for i, name in enumerate(names) if name == "allmem"] == memories


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"keep": 4}, "keep = 4 must lie between 0 and 3"),
        ({"keep": 1, "memories": 4}, "memories = 4 must lie between 0 and 3"),
    ],
)
def test_bad_input(arguments: dict[str, int], said: str) -> None:
    with pytest.raises(AllMemError, match=said):
        place(made(LOUD), rows(1), **arguments)


def test_rows_that_end_within_the_window_are_refused() -> None:
    with pytest.raises(AllMemError, match="does not reach beyond"):
        place(made(LOUD), [plain_row(torch.arange(W))], keep=0)
