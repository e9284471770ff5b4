"""Different mixers in different layers, and models without any memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from allmem import AllMemError
from allmem.models.adapter import save_adapter
from allmem.models.cache import AllMemCache
from tests.models.tiny import (
    C,
    W,
    assert_close,
    base_model,
    logits,
    logits_in_calls,
    read,
    text,
    tiny_model,
)

PATTERNS: dict[str, dict[str, Any]] = {
    "memory-then-full": {"mixers": "allmem*1,full"},
    "window-then-memory": {"mixers": "window,allmem"},
    "full-then-window": {"mixers": "full,window"},
    "a-list": {"mixers": ["allmem", "window"]},
    "first-kept-full": {"keep_full": [0]},
    "last-kept-full": {"keep_full": [1]},
    "window-only": {"mixers": "window"},
    "full-only": {"mixers": "full"},
    "all-kept-full": {"keep_full": range(2), "chunk": None},
}
LAYERS = {
    "memory-then-full": ["allmem", "full"],
    "window-then-memory": ["window", "allmem"],
    "full-then-window": ["full", "window"],
    "a-list": ["allmem", "window"],
    "first-kept-full": ["full", "allmem"],
    "last-kept-full": ["allmem", "full"],
    "window-only": ["window", "window"],
    "full-only": ["full", "full"],
    "all-kept-full": ["full", "full"],
}

every_pattern = pytest.mark.parametrize("case", PATTERNS)


def model_of(case: str) -> Any:
    return tiny_model(dtype=torch.float64, **PATTERNS[case])


@every_pattern
def test_each_layer_is_what_the_pattern_says(case: str) -> None:
    model = model_of(case)
    assert model.config.layers == LAYERS[case]
    with_memory = {int(name.split(".")[1]) for name in model.memory_parameters()}
    assert with_memory == {i for i, name in enumerate(LAYERS[case]) if name == "allmem"}


@every_pattern
def test_any_split_into_calls_is_one_call(case: str) -> None:
    model = model_of(case)
    ids = text(2, 33)
    pieces = ids.tensor_split([1, 2, 7, 8, 20, 31], dim=1)
    assert_close(logits_in_calls(model, pieces), logits(model, ids), 1e-8)


@every_pattern
def test_padding_over_two_calls_changes_nothing(case: str) -> None:
    model = model_of(case)
    ids = text(2, 30)
    mask = torch.ones_like(ids)
    mask[0, :4] = mask[0, 15:19] = mask[1, 12:17] = 0
    cache = AllMemCache(model.config)
    first = logits(model, ids[:, :17], attention_mask=mask[:, :17], past_key_values=cache)
    second = logits(model, ids[:, 17:], attention_mask=mask, past_key_values=cache)
    both = torch.cat([first, second], 1)
    for row in range(2):
        kept = mask[row].bool()
        alone = logits(model, ids[row, kept][None])[0]
        assert_close(both[row][kept], alone, 1e-8)


@every_pattern
def test_the_state_grows_only_with_full_attention(case: str) -> None:
    model = model_of(case)
    small, large = (read(model, text(1, n)).nbytes for n in (W + C, 4 * W))
    grows = "full" in LAYERS[case]
    assert (large > small) == grows
    for n, found in ((W + C, small), (4 * W, large)):
        assert found == sum(mixed.state_bytes(n, torch.float64) for mixed in model.mixers())


@pytest.mark.parametrize("case", ["full-only", "all-kept-full"])
def test_full_attention_in_every_layer_is_the_original_model(case: str) -> None:
    ids = text(2, 3 * W)
    model = tiny_model(**PATTERNS[case])
    assert_close(logits(model, ids), logits(base_model(), ids), 1e-4)
    assert_close(logits_in_calls(model, ids.split(7, 1)), logits(base_model(), ids), 1e-4)


def test_an_adapter_needs_a_memory_to_save(tmp_path: Any) -> None:
    with pytest.raises(AllMemError, match="nothing to save"):
        save_adapter(model_of("window-only"), tmp_path / "adapter.safetensors")


def test_a_model_without_memory_has_no_chunk() -> None:
    assert model_of("window-only").config.chunk is None
    with pytest.raises(AllMemError, match="no layer"):
        tiny_model(mixers="window", chunk=C)
