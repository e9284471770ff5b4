"""``allmem info``: its numbers are those of the loaded model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import allmem
from allmem.cost import Overview
from allmem.models import modeling
from tests.cli.conftest import C, S, W

SIZES = ["--window", str(W), "--sinks", str(S), "--chunk", str(C)]


def test_a_converted_model_shows_its_sizes(run: Any, converted: str) -> None:
    shown = run("info", converted).stdout
    model = AutoModelForCausalLM.from_pretrained(converted)
    added = sum(p.numel() for p in model.memory_parameters().values())
    total = sum(p.numel() for p in model.parameters())
    assert f"window {W}, sinks {S}, chunk {C}" in shown
    for number in (added, total - added, added // 2):
        assert f"{number:,}" in shown
    assert "converted, from a llama model" in shown


def test_an_unconverted_model_shows_what_it_would_become(
    run: Any, base: str, converted: str
) -> None:
    shown = run("info", base, *SIZES).stdout
    assert "not converted" in shown
    # Everything below the first line is the same for the folder that `convert` made.
    assert shown.splitlines()[1:] == run("info", converted).stdout.splitlines()[1:]


def test_layers_that_keep_full_attention_grow(run: Any, base: str) -> None:
    shown = run("info", base, *SIZES, "--keep-full", "1").stdout
    assert "grows" in shown
    all_full = run("info", base, "--window", "16", "--mixers", "full").stdout
    assert "nothing is saved at any length" in all_full


def test_weights_are_not_loaded(run: Any, converted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **options: Any) -> None:
        raise AssertionError("info loaded the weights")

    monkeypatch.setattr(modeling.AllMemForCausalLM, "from_pretrained", never)
    run("info", converted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_state_bytes_are_what_a_reading_leaves_behind(converted: str, dtype: torch.dtype) -> None:
    model = AutoModelForCausalLM.from_pretrained(converted, dtype=dtype)
    cache = model(torch.arange(5, 60)[None], use_cache=True).past_key_values
    assert Overview(model, dtype).state_bytes(55) == cache.nbytes


def test_full_bytes_are_those_of_the_original_s_cache(base: str) -> None:
    original = AutoModelForCausalLM.from_pretrained(base)
    cache = original(torch.arange(5, 60)[None], use_cache=True).past_key_values
    bytes_used = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    overview = Overview(allmem.convert(original, window=W, sinks=S, chunk=C), torch.float32)
    assert overview.full_bytes(55) == bytes_used


def test_break_even_is_where_the_two_sizes_cross(converted: str) -> None:
    overview = Overview(AutoModelForCausalLM.from_pretrained(converted), torch.float32)
    even = overview.break_even()
    assert even is not None
    assert overview.full_bytes(even - 1) < overview.state_bytes(even - 1)
    assert overview.full_bytes(even) >= overview.state_bytes(even)
