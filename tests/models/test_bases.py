"""Every architecture that the converter takes: the conversion changes nothing but what it says.

Each property is checked for each base. The references are the base models themselves, with their
own sliding-window machinery where they have one and an explicit mask where they have none.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import allmem
from allmem.models.configuration import LOCAL
from tests.models.tiny import (
    BASES,
    OWN_WINDOW,
    C,
    S,
    W,
    assert_close,
    base_model,
    logits,
    logits_in_calls,
    text,
    tiny_model,
    without_memory,
)

every_base = pytest.mark.parametrize("name", BASES)
LONG = 3 * W + 2


def precision(name: str) -> tuple[torch.dtype, float]:
    """Float64 where the base can compute in it: torch's grouped products for experts cannot."""
    return (torch.float32, 1e-4) if name == "qwen3-moe" else (torch.float64, 1e-8)


def windowed_logits(name: str, ids: Tensor, window: int) -> Tensor:
    """[B, T, V] of the base model whose layers see ``window`` keys, or fewer if they were local."""
    base = base_model(name)
    base.set_attn_implementation("eager")
    length = ids.shape[1]
    distance = torch.arange(length)[:, None] - torch.arange(length)[None]

    def mask(width: int) -> Tensor:
        visible = (distance >= 0) & (distance < width)
        return torch.zeros(length, length).masked_fill(~visible, float("-inf"))[None, None]

    own = OWN_WINDOW.get(name, [None])
    by_type: Tensor | dict[str, Tensor] = mask(min(window, own[0] or window))
    if name in {"gemma3", "qwen3-local-first"}:
        by_type = {"sliding_attention": mask(own[0] or window), "full_attention": mask(window)}
    return logits(base, ids, attention_mask=by_type, use_cache=False)


@every_base
def test_without_memory_nothing_changes_within_sinks_and_window(name: str) -> None:
    ids = text(2, S + W)
    converted = without_memory(tiny_model(name))
    assert_close(logits(converted, ids), logits(base_model(name), ids), 1e-4)


@every_base
def test_without_memory_and_sinks_each_layer_is_a_sliding_window(name: str) -> None:
    ids = text(2, LONG)
    converted = without_memory(tiny_model(name, sinks=0))
    expected = windowed_logits(name, ids, W)
    assert_close(logits(converted, ids), expected, 1e-4)
    full = logits(base_model(name), ids)
    assert (expected - full)[:, W:].abs().max() > 1e-2, "the window must matter in this test"


@pytest.mark.parametrize("name", ["qwen3", "mistral"])
def test_the_window_is_the_one_that_transformers_computes(name: str) -> None:
    own = {"sliding_window": W}
    if name == "qwen3":
        own |= {"use_sliding_window": True, "layer_types": ["sliding_attention"] * 2}
    ids = text(2, LONG)
    assert_close(
        logits(without_memory(tiny_model(name, sinks=0)), ids),
        logits(base_model(name, **own), ids),
        1e-4,
    )


@every_base
def test_full_attention_is_the_original_model_at_any_length(name: str) -> None:
    ids = text(2, LONG)
    taught = logits(tiny_model(name), ids, full_attention=True)
    assert_close(taught, logits(base_model(name), ids), 1e-4)


@every_base
def test_the_memory_changes_what_the_model_says(name: str) -> None:
    """Else every other test here would be empty."""
    ids = text(1, LONG)
    model = tiny_model(name)
    with_memory = logits(model, ids)
    assert (with_memory - logits(without_memory(model), ids))[:, C:].abs().max() > 1e-2


@every_base
def test_any_split_into_calls_is_one_call(name: str) -> None:
    dtype, tolerance = precision(name)
    model = tiny_model(name, dtype=dtype)
    ids = text(2, LONG)
    pieces = ids.tensor_split([1, C, C + 2, 2 * C + 3, 2 * C + W + 4], dim=1)
    assert_close(logits_in_calls(model, pieces), logits(model, ids), tolerance)


@every_base
def test_decoding_token_by_token_is_reading_at_once(name: str) -> None:
    dtype, tolerance = precision(name)
    model = tiny_model(name, dtype=dtype)
    ids = text(2, LONG)
    assert_close(logits_in_calls(model, ids.split(1, dim=1)), logits(model, ids), tolerance)


@every_base
def test_no_logit_depends_on_a_later_token(name: str) -> None:
    model = tiny_model(name)
    ids = text(1, LONG)
    other = ids.clone()
    other[:, 20:] = text(1, LONG - 20, seed=5)
    assert_close(logits(model, other)[:, :20], logits(model, ids)[:, :20], 1e-5)


@every_base
def test_a_saved_checkpoint_gives_the_same_bits(name: str, tmp_path: Path) -> None:
    model = tiny_model(name)
    ids = text(2, LONG)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert isinstance(loaded, allmem.AllMemForCausalLM)
    assert torch.equal(logits(loaded, ids), logits(model, ids))
    assert torch.equal(
        logits(loaded, ids, full_attention=True), logits(model, ids, full_attention=True)
    )
    assert loaded.fingerprint() == model.fingerprint()
    assert loaded.cache_key == model.cache_key
    assert _is_tied(loaded) == _is_tied(model) == model.config.text_config.tie_word_embeddings
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.essence() == model.config.essence()
    assert type(config)(**config.to_dict()).essence() == config.essence()


def _is_tied(model: PreTrainedModel) -> bool:
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    return inputs.weight.data_ptr() == outputs.weight.data_ptr()


def test_layers_that_were_local_keep_their_window_without_memory() -> None:
    for name in ("gemma3", "qwen3-local-first"):
        model = tiny_model(name)
        assert model.config.layers == [LOCAL, "allmem"]
        assert {key.split(".")[1] for key in model.memory_parameters()} == {"1"}
        cache = model(text(1, 5), use_cache=True).past_key_values
        assert cache.tensors()["layers.0.attention.keys"].shape[2] == 6


def test_a_layer_whose_own_window_is_wider_than_w_gets_a_memory() -> None:
    assert tiny_model("mistral-wider").config.layers == ["allmem", "allmem"]


LENGTH_DEPENDENT = ["phi3-longrope", "llama-dynamic"]


@pytest.mark.parametrize("name", LENGTH_DEPENDENT)
def test_lengths_that_decide_frequencies_are_frozen_at_sinks_and_window(name: str) -> None:
    """Beyond the trained length the base model turns all tokens of a text in another way."""
    ids = text(1, 140)
    base = base_model(name)
    expected = logits(base, ids[:, : S + W])
    assert (logits(base, ids)[:, : S + W] - expected).abs().max() > 1e-3
    model = without_memory(tiny_model(name))
    # Also after a longer text has been read.
    for _ in range(2):
        assert_close(logits(model, ids)[:, : S + W], expected, 1e-4)


@pytest.mark.parametrize("name", LENGTH_DEPENDENT)
def test_the_teachers_frequencies_follow_the_length(name: str) -> None:
    model = tiny_model(name)
    for length in (20, 140, 20):
        taught = logits(model, text(1, length), full_attention=True)
        assert_close(taught, logits(base_model(name), text(1, length)), 1e-4)


@every_base
def test_a_padded_row_is_taught_what_it_is_taught_alone(name: str) -> None:
    ids, mask = text(2, 20), torch.ones(2, 20, dtype=torch.long)
    mask[0, :7] = mask[1, 3:5] = 0
    model = tiny_model(name)
    taught = logits(model, ids, attention_mask=mask, full_attention=True)
    for row in range(2):
        kept = mask[row].bool()
        alone = logits(base_model(name), ids[row, kept][None])[0]
        assert_close(taught[row][kept], alone, 1e-4)


def test_a_default_dtype_does_not_matter_to_a_conversion() -> None:
    expected = allmem.convert(base_model().bfloat16(), window=W, sinks=S, chunk=C)
    base, before = base_model().bfloat16(), torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = allmem.convert(base, window=W, sinks=S, chunk=C)
    finally:
        torch.set_default_dtype(before)
    for name, parameter in expected.memory_parameters().items():
        assert model.memory_parameters()[name].dtype == parameter.dtype, name
    for name in ("q", "k", "v", "o"):
        found, right = (
            getattr(m.mixers()[0].memory.unit.projections, name).weight  # type: ignore[union-attr]
            for m in (model, expected)
        )
        assert torch.equal(found, right)
