"""KV policies in whole models: everything that a window layer can do, they can."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import allmem
from allmem import AllMemError
from allmem.config import WindowConfig
from allmem.distill import distill
from allmem.mixers.compacting import CompactingMixer
from allmem.mixers.ladder import LadderMixer
from allmem.models.cache import AllMemCache
from tests.distill import tiny
from tests.models.tiny import (
    C,
    S,
    W,
    assert_close,
    base_model,
    logits,
    logits_in_calls,
    read,
    text,
    tiny_model,
)

OPTIONS: dict[str, dict[str, Any]] = {
    "ladder": {"interval": 2},
    "eviction": {"interval": 3, "priority": 2},
    "blocks": {"block": 3, "retrieved": 2, "lookup": 2},
}
PATTERNS: dict[str, Any] = {
    "ladder": "ladder",
    "eviction": "eviction",
    "blocks": "blocks",
    "beside-a-memory": "allmem,blocks",
    "two-policies": "ladder,eviction",
}
LENGTH = 4 * W

every_pattern = pytest.mark.parametrize("pattern", PATTERNS)


def model_of(pattern: str, base: str = "qwen3", **options: Any) -> Any:
    names = PATTERNS[pattern].split(",")
    own = {name: OPTIONS[name] for name in names if name in OPTIONS}
    return tiny_model(
        base, dtype=torch.float64, mixers=PATTERNS[pattern], mixer_options=own, **options
    )


@every_pattern
def test_the_beginning_of_a_text_is_the_original_model(pattern: str) -> None:
    # All of it is in the cache, and no memory has written.
    ids = text(2, C)
    names = PATTERNS[pattern].split(",")
    own = {name: OPTIONS[name] for name in names if name in OPTIONS}
    model = allmem.convert(
        base_model(), window=W, sinks=S, mixers=PATTERNS[pattern], mixer_options=own
    )
    assert_close(logits(model, ids), logits(base_model(), ids), 1e-4)


BASES = [
    *(("qwen3", pattern) for pattern in PATTERNS),
    # Half-rotated heads, an attention factor, a layer without positions, norms over all heads.
    *((base, "two-policies") for base in ("phi3", "qwen3-yarn", "smollm3", "olmo2")),
    *((base, "blocks") for base in ("phi3", "qwen3-yarn", "smollm3")),
    # The first layer stays local.
    *(("gemma3", pattern) for pattern in OPTIONS),
]


@pytest.mark.parametrize(("base", "pattern"), BASES)
def test_any_split_into_calls_is_one_call(pattern: str, base: str) -> None:
    model = model_of(pattern, base)
    ids = text(2, LENGTH)
    pieces = ids.tensor_split([1, 2, 7, 8, 20, 31], dim=1)
    assert_close(logits_in_calls(model, pieces), logits(model, ids), 1e-8)


@every_pattern
def test_padding_over_two_calls_changes_nothing(pattern: str) -> None:
    model = model_of(pattern)
    ids = text(2, LENGTH)
    mask = torch.ones_like(ids)
    mask[0, :4] = mask[0, 25:29] = mask[1, 12:17] = 0
    cache = AllMemCache(model.config)
    first = logits(model, ids[:, :27], attention_mask=mask[:, :27], past_key_values=cache)
    second = logits(model, ids[:, 27:], attention_mask=mask, past_key_values=cache)
    both = torch.cat([first, second], 1)
    for row in range(2):
        kept = mask[row].bool()
        assert_close(both[row][kept], logits(model, ids[row, kept][None])[0], 1e-8)


@every_pattern
def test_packed_documents_do_not_see_each_other(pattern: str) -> None:
    model = model_of(pattern)
    ids = text(1, LENGTH + 11)
    places = torch.cat([torch.arange(11), torch.arange(LENGTH)])[None]
    packed = logits(model, ids, position_ids=places)
    assert_close(packed[:, 11:], logits(model, ids[:, 11:]), 1e-8)


@every_pattern
def test_generation_is_the_same_from_a_cache_and_in_a_batch(pattern: str) -> None:
    model = model_of(pattern)
    ids = text(2, LENGTH)
    settings: dict[str, Any] = {"max_new_tokens": 2 * W, "do_sample": False, "eos_token_id": None}
    whole = model.generate(ids, **settings)
    cache = read(model, ids[:, :-3])
    assert torch.equal(model.generate(ids, past_key_values=cache, **settings), whole)
    alone = model.generate(ids[1:], **settings)
    assert torch.equal(alone, whole[1:])
    beams = model.generate(ids, num_beams=2, **settings)
    assert beams.shape == whole.shape


@every_pattern
def test_a_saved_state_and_a_fork_go_on_to_the_bit(pattern: str, tmp_path: Path) -> None:
    model = model_of(pattern)
    ids = text(1, LENGTH)
    cache = read(model, ids[:, : LENGTH - 9])
    cache.save(tmp_path / "state.safetensors", model)
    fork, loaded = cache.fork(), AllMemCache.load(tmp_path / "state.safetensors", model)
    expected = logits(model, ids[:, -9:], past_key_values=cache)
    for twin in (fork, loaded):
        assert torch.equal(logits(model, ids[:, -9:], past_key_values=twin), expected)


@every_pattern
def test_a_checkpoint_brings_its_policies(pattern: str, tmp_path: Path) -> None:
    model = model_of(pattern)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert again.config.layers == model.config.layers
    assert again.config.mixer_options == model.config.mixer_options
    ids = text(1, LENGTH)
    assert torch.equal(logits(again, ids), logits(model, ids))


@every_pattern
def test_states_have_the_bytes_of_the_closed_form(pattern: str) -> None:
    model = model_of(pattern)
    for length in (1, W, LENGTH):
        expected = sum(mixed.state_bytes(length, torch.float64) for mixed in model.mixers())
        assert read(model, text(1, length)).nbytes == expected


@every_pattern
def test_a_text_can_be_read_with_another_window(pattern: str) -> None:
    model = model_of(pattern)
    ids = text(1, LENGTH)
    wide = WindowConfig(2 * LENGTH, S)
    cache = AllMemCache(model.config, window=wide)
    found = logits_in_calls(model, ids.split(9, 1), cache)
    # Everything fits into the cache. A memory reads on, as it would beside a window.
    if "allmem" not in PATTERNS[pattern]:
        full = tiny_model(mixers="full", dtype=torch.float64)
        assert_close(found, logits(full, ids), 1e-8)
    assert not torch.allclose(found, logits(model, ids))


def test_ladders_know_their_place_among_the_ladders() -> None:
    model = model_of("ladder")
    ladders = [mixed.attention for mixed in model.mixers()]
    assert all(isinstance(ladder, LadderMixer) for ladder in ladders)
    assert [ladder.place.number for ladder in ladders] == [0, 1]
    offsets = [ladder.sizes(ladder.window).offset for ladder in ladders]
    assert offsets == [0, 1]
    single = tiny_model(mixers="allmem,ladder").mixers()[1].attention
    assert (single.place.number, single.place.layers) == (0, 1)


def test_by_default_a_policy_has_the_slots_of_the_window() -> None:
    for name in OPTIONS:
        attention = tiny_model(mixers=name).mixers()[0].attention
        assert isinstance(attention, CompactingMixer)
        kept = attention.device_bytes(100, torch.float32)
        ring = tiny_model(mixers="window").mixers()[0].state_bytes(100, torch.float32)
        # Sums of attention come on top.
        assert ring <= kept <= 1.2 * ring


@pytest.mark.parametrize("name", OPTIONS)
def test_memories_beside_a_policy_are_distilled(name: str) -> None:
    model = tiny.make_model(mixers=f"{name},allmem", dtype=torch.float32)
    before = {key: weight.clone() for key, weight in model.named_parameters()}
    distill(model, tiny.make_rows(), tiny.make_held_out(2), tiny.make_config())
    changed = {
        key for key, weight in model.named_parameters() if not torch.equal(weight, before[key])
    }
    assert changed
    assert all("layers.1." in key for key in changed)
    assert all(torch.isfinite(weight).all() for weight in model.parameters())


REFUSED = {
    "too-few-slots": ({"slots": 6, "interval": 3}, "give slots or a window for at least"),
    "unknown-option": ({"slot": 6}, "did you mean 'slots'"),
    "no-slots": ({"slots": 0}, "positive whole number"),
    "negative-sinks": ({"sinks": -1}, "0 or more"),
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("case", REFUSED)
def test_bad_options_are_refused(case: str, name: str) -> None:
    options, message = REFUSED[case]
    if name == "blocks" and "interval" in options:
        options = {"slots": 6, "block": 3}
    with pytest.raises(AllMemError, match=message):
        allmem.convert(base_model(), window=W, sinks=S, mixers=name, mixer_options={name: options})


def test_an_overlap_as_wide_as_the_span_is_refused() -> None:
    for options in ({"span": 2, "overlap": 2}, {"span": 2}):
        with pytest.raises(AllMemError, match="span"):
            allmem.convert(
                base_model(), window=W, sinks=S, mixers="ladder", mixer_options={"ladder": options}
            )


def test_a_window_too_small_for_a_policy_is_refused_when_a_text_is_read() -> None:
    model = model_of("ladder")
    cache = AllMemCache(model.config, window=WindowConfig(3, 2))
    with pytest.raises(AllMemError, match="too few"):
        logits(model, text(1, 5), past_key_values=cache)
