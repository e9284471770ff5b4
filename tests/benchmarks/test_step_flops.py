"""The closed form of a training step's FLOPs against what torch counts while a step runs."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from allmem.cost.executed import square_pairs, window_pairs
from allmem.mixers.attention import WindowMixer, causal_pairs
from allmem.models.modeling import AllMemForCausalLM
from benchmarks.shapes import SHAPES, converted
from benchmarks.step_flops import step_flops
from benchmarks.training_step import step_of, text_batch

LAYERS = 3
MAPS = ("memory projections", "memory rates")
LOOP = ("memory read", "memory key forward", "memory gradient")


class NoModules(contextlib.nullcontext[None]):
    """In place of torch's tracker of modules, whose hooks fail where the loss works out its own
    gradient."""

    parents = frozenset({"Global"})


def computed_beyond_need(model: AllMemForCausalLM, tokens: int) -> int:
    """Of a row: scores that masks throw away, and those that the backward pass computes again."""
    total = 0
    for i, mixed in enumerate(model.mixers()):
        attention = mixed.attention
        assert isinstance(attention, WindowMixer)
        product = 2 * attention.shape.query_heads * attention.shape.head_dim
        scored, needed = window_pairs(tokens, attention.window, tokens), attention.pairs(tokens)
        total += 2 * product * (square_pairs(tokens) - causal_pairs(tokens))
        total += 2 * product * (scored - needed)
        if i:
            total += product * (5 * scored - 4 * needed)
    return total


def counted_and_expected(
    tokens: int, rows: int, memory: dict[str, Any]
) -> tuple[int, int, int, int]:
    """FLOPs of a step by torch, less what is known to be beyond need; by the closed form; of
    reading with the inner loops alone; and of the maps of the last chunk, whose writes nobody
    reads."""
    model = converted(SHAPES["tiny"], torch.float32, layers=LAYERS, memory=memory or None)
    ids = torch.randint(10, 500, (rows, tokens), generator=torch.Generator().manual_seed(0))
    batch = text_batch(ids, tokens // 2)
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = NoModules()
    with step_of(model) as step, sdpa_kernel(SDPBackend.MATH), counter:
        step(batch)
    expected = step_flops(model, tokens, tokens // 2, rows)
    assert expected.total == sum(vars(expected).values())
    extra = rows * computed_beyond_need(model, tokens)
    last = tokens - (tokens - 1) // SHAPES["tiny"].chunk * SHAPES["tiny"].chunk
    loops = sum(m.flops_by_part(tokens)[part] for m in model.mixers() for part in LOOP)
    maps = sum(m.flops_by_part(last)[part] for m in model.mixers() for part in MAPS)
    return counter.get_total_flops() - extra, expected.total, rows * loops, rows * maps


@pytest.mark.parametrize("tokens", [31, 96, 131], ids="T{}".format)
@pytest.mark.parametrize("rows", [1, 2], ids="B{}".format)
def test_outside_of_the_inner_loop_torch_counts_what_the_closed_form_does(
    tokens: int, rows: int
) -> None:
    """With inner loops too small to show."""
    counted, expected, loops, last = counted_and_expected(tokens, rows, {"head_dim": 2, "width": 1})
    assert 0 <= counted - expected <= 2 * loops + 2 * last < 0.03 * expected


@pytest.mark.parametrize("tokens", [31, 96, 131], ids="T{}".format)
def test_no_inner_loop_trains_with_less_than_the_closed_form(tokens: int) -> None:
    """It may compute parts of its forward pass again, and differentiate what nobody reads."""
    counted, expected, loops, last = counted_and_expected(tokens, 1, {})
    assert 0 <= counted - expected <= 3 * loops + 2 * last
