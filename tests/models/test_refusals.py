"""What cannot be converted is refused in one line that says why and what would be right."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel
from transformers import models as architectures

import allmem
from allmem import AllMemConfig, AllMemError, MemoryConfig, WindowConfig
from tests.models.tiny import SHAPE, C, S, W, base_model, text, tiny_model


def _causal(family: str, **own: Any) -> Callable[[], PreTrainedModel]:
    def build() -> PreTrainedModel:
        config = getattr(architectures, family)(**{**SHAPE, **own})
        return AutoModelForCausalLM.from_config(config).eval()

    return build


def _t5() -> PreTrainedModel:
    config = architectures.T5Config(vocab_size=61, d_model=16, d_kv=8, d_ff=16, num_layers=1)
    return AutoModelForSeq2SeqLM.from_config(config)


UNSUPPORTED: dict[str, tuple[Callable[[], PreTrainedModel], str]] = {
    "gpt2-no-decoder-layers": (_causal("GPT2Config"), "no list of decoder layers"),
    "t5-encoder-decoder": (_t5, "encoder-decoder"),
    "gpt-oss-learned-sinks": (
        _causal("GptOssConfig", head_dim=8, num_local_experts=2, num_experts_per_tok=1),
        "learned sink logits",
    ),
    "gemma2-capped-scores": (
        _causal("Gemma2Config", head_dim=8, attn_logit_softcapping=50.0),
        "caps scores",
    ),
    "llama4-chunked": (
        _causal(
            "Llama4TextConfig",
            head_dim=8,
            num_local_experts=2,
            intermediate_size_mlp=16,
            attention_chunk_size=16,
        ),
        "chunk",
    ),
    "gemma3-bidirectional": (
        _causal("Gemma3TextConfig", head_dim=8, use_bidirectional_attention=True),
        "bidirectional",
    ),
    "mamba-no-attention": (
        _causal("MambaConfig", state_size=4, num_hidden_layers=1),
        "AttentionInterface",
    ),
    "cohere-interleaved-rope": (_causal("CohereConfig"), "rotary positions"),
    "bert-like-head": (
        lambda: architectures.LlamaModel(architectures.LlamaConfig(**SHAPE)),
        "no language-model head",
    ),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_an_architecture_that_cannot_work_is_refused(case: str) -> None:
    build, reason = UNSUPPORTED[case]
    with pytest.raises(AllMemError, match=reason):
        allmem.convert(build(), window=W, sinks=S, chunk=C)


def test_a_convention_that_only_the_logits_reveal_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last line of defence: a few tokens read before and after."""
    base = base_model("llama")
    monkeypatch.setattr(base.model.layers[0].self_attn, "scaling", 0.9)

    def half(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any]:
        if "allmem_tap" in kwargs:
            kwargs["hidden_states"] = kwargs["hidden_states"] * 0.5
        return args, kwargs

    base.model.layers[0].self_attn.register_forward_pre_hook(half, with_kwargs=True)
    with pytest.raises(AllMemError, match=r"logits differ from the original's by \d+"):
        allmem.convert(base, window=W, sinks=S, chunk=C)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "unknown-mixer": ({"mixers": "alllmem"}, "did you mean 'allmem'"),
    "pattern-not-dividing": ({"mixers": "allmem*2,full"}, "does not divide the model's 2"),
    "pattern-malformed": ({"mixers": "allmem*x"}, r"name\*count"),
    "list-too-long": ({"mixers": ["allmem"] * 3}, "does not divide"),
    "window-below-chunk": ({"window": 4, "sinks": 1}, "choose chunk <= 4"),
    "chunk-in-memory-above-window": (
        {"chunk": None, "memory": {"chunk": W + 1}},
        f"choose chunk <= {W}",
    ),
    "sinks-as-many-as-window": ({"sinks": W}, f"choose at most {W - 1} sinks"),
    "negative-sinks": ({"sinks": -1}, "0 or more"),
    "no-window": ({"window": 0}, "positive whole number"),
    "no-chunk": ({"chunk": 0}, "chunk = 0"),
    "keep-full-out-of-range": ({"keep_full": [2]}, "there is no layer 2; the model has 2"),
    "keep-full-negative": ({"keep_full": [-1]}, "there is no layer -1"),
    "memory-without-memory-layers": (
        {"mixers": "window", "chunk": None, "memory": {"width": 8}},
        "no layer has a memory",
    ),
    "chunk-without-memory-layers": ({"mixers": "window"}, "no layer has a memory"),
    "unknown-memory-option": ({"memory": {"witdh": 8}}, "did you mean 'width'"),
    "unknown-option-value": ({"memory": {"norm": "intrenal"}}, "did you mean 'internal'"),
    "unknown-mixer-options": ({"mixer_options": {"alllmem": {}}}, "did you mean 'allmem'"),
    "allmem-among-mixer-options": ({"mixer_options": {"allmem": {"width": 8}}}, "memory="),
    "heads-not-dividing": ({"memory": {"heads": 5}}, "not divisible by 5 memory heads"),
    "two-chunks": ({"memory": {"chunk": 4}}, "chunk = 5, but memory has chunk = 4"),
    "load-options-for-a-loaded-model": ({"dtype": "float32"}, "loaded already"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_value_out_of_range_is_named_with_its_remedy(case: str) -> None:
    options, message = BAD[case]
    base = base_model("llama")
    before = {name: p.clone() for name, p in base.named_parameters()}
    expected = base(text(1, 8)).logits
    with pytest.raises(AllMemError, match=message) as caught:
        allmem.convert(base, **{"window": W, "sinks": S, "chunk": C, **options})
    assert "\n" not in str(caught.value)
    # The refused model is untouched: conversion is in place only once it is certain.
    assert before.keys() == dict(base.named_parameters()).keys()
    assert torch.equal(base(text(1, 8)).logits, expected)


def test_a_converted_model_is_not_converted_again() -> None:
    with pytest.raises(AllMemError, match="converted already"):
        allmem.convert(tiny_model())


def test_the_base_inside_a_converted_model_is_not_called_by_itself() -> None:
    with pytest.raises(AllMemError, match="call the AllMemForCausalLM"):
        tiny_model().base(text(1, 4))


def test_a_base_that_was_converted_is_not_converted_again() -> None:
    base = base_model()
    allmem.convert(base, window=W, sinks=S, chunk=C)
    with pytest.raises(AllMemError, match="already"):
        allmem.convert(base, window=W, sinks=S, chunk=C)


def test_a_model_all_of_whose_layers_are_local_says_what_window_would_matter() -> None:
    with pytest.raises(AllMemError, match=r"every layer .* at most 20; choose a window below"):
        allmem.convert(base_model("mistral-wider"), window=32, sinks=0, chunk=8)


def test_a_window_beyond_the_trained_positions_warns() -> None:
    with pytest.warns(UserWarning, match="more than the 256 positions"):
        allmem.convert(base_model(), window=300, sinks=2, chunk=C)


def test_a_sensible_conversion_does_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        allmem.convert(base_model(), window=W, sinks=S, chunk=C)


def test_sizes_default_to_the_papers_proportions() -> None:
    model = allmem.convert(base_model(max_position_embeddings=2048))
    assert (model.config.window, model.config.sinks, model.config.chunk) == (256, 8, 128)


def test_a_given_window_brings_sinks_and_chunk_that_fit() -> None:
    config = allmem.convert(base_model(), window=40).config
    assert config.window_config == WindowConfig(40, 4)
    assert config.chunk <= 20


@pytest.mark.parametrize("layers", [["allmem"], ["allmem"] * 3], ids=["too-few", "too-many"])
def test_a_configuration_with_the_wrong_number_of_layers_is_refused(layers: list[str]) -> None:
    base = base_model().config.to_dict()
    with pytest.raises(AllMemError, match=rf"{len(layers)} layers are named.* has 2"):
        AllMemConfig(text_config=base, window=W, sinks=S, layers=layers)


def test_a_refusal_at_a_later_layer_leaves_the_first_as_it_was() -> None:
    base = base_model()
    with pytest.raises(AllMemError, match="not divisible"):
        allmem.convert(base, window=W, sinks=S, mixers="window,allmem", memory={"heads": 5})
    allmem.convert(base, window=W, sinks=S, chunk=C)


def test_a_memory_config_is_taken_as_it_is() -> None:
    memory = MemoryConfig(chunk=C, width=8, norm="post_update")
    config = allmem.convert(base_model(), window=W, sinks=S, memory=memory).config
    assert config.options_of("allmem") == memory


def test_conversion_keeps_mode_dtype_and_the_callers_configuration() -> None:
    base = base_model().train().to(torch.bfloat16)
    config = base.config
    model = allmem.convert(base, window=W, sinks=S, chunk=C)
    assert model.training
    assert model.dtype == torch.bfloat16
    assert config._attn_implementation != "allmem"
    kept = {p.dtype for n, p in model.memory_parameters().items() if ".unit.initial." in n}
    assert kept == {torch.float32}
