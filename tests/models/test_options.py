"""Whole models with every kind of projection and the options of the memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import allmem
from allmem.models.cache import AllMemCache
from allmem.models.modeling import AllMemForCausalLM
from allmem.models.structure import attention_shape, attention_weights
from tests.models.tiny import (
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

OPTIONS: dict[str, dict[str, Any]] = {
    "full": {},
    "lowrank": {"projections": "lowrank", "rank": 3},
    "shared": {"projections": "shared", "rank": 3},
    "shared-one-head": {"projections": "shared", "rank": 3, "heads": 1},
    "shared-odd-head-size": {"projections": "shared", "rank": 3, "head_dim": 11},
    "shared-no-gate": {"projections": "shared", "gate": False},
    "random-start": {"start": "random"},
    "no-conv": {"conv": 0},
    "one-tap": {"conv": 1},
    "seven-taps": {"conv": 7},
    "no-gate": {"gate": False},
    "no-value-norm": {"normalize_values": False},
    "no-output-norm": {"output_norm": False},
    "read-by-what-is-lost": {"read_scope": "lost"},
    "no-feature-activation": {"feature_activation": False},
    "linear": {"network": "linear"},
    "linear-shared": {"network": "linear", "projections": "shared"},
    "no-residual": {"residual": False},
    "post-update-norm": {"norm": "post_update"},
    "all-rows-normalised": {"norm_matrices": ["gate", "up", "down"]},
    "no-norm": {"norm": "none"},
    "no-momentum": {"momentum": False},
    "no-clip": {"clip": None},
    "dot-loss": {"loss": "dot"},
    "wide": {"width": 40},
    "more-heads-than-kv": {"heads": 4},
    "chunk-of-one": {"chunk": 1},
    "chunk-as-long-as-window": {"chunk": W},
}

every_option = pytest.mark.parametrize("case", OPTIONS)


def optional_model(case: str, name: str = "qwen3") -> AllMemForCausalLM:
    options = dict(OPTIONS[case])
    chunk = options.pop("chunk", C)
    return tiny_model(name, dtype=torch.float64, memory=options, chunk=chunk)


@every_option
def test_any_split_into_calls_is_one_call(case: str) -> None:
    model = optional_model(case)
    ids = text(2, 33)
    pieces = ids.tensor_split([1, 2, 7, 8, 20, 31], dim=1)
    assert_close(logits_in_calls(model, pieces), logits(model, ids), 1e-8)


@every_option
def test_a_padded_row_gives_what_it_gives_alone(case: str) -> None:
    model = optional_model(case)
    ids = text(2, 20)
    mask = torch.ones_like(ids)
    mask[0, :3] = mask[0, 9:11] = 0
    alone = logits(model, ids[0, mask[0].bool()][None])
    padded = logits(model, ids, attention_mask=mask)
    assert_close(padded[0][mask[0].bool()], alone[0], 1e-8)


@every_option
def test_the_state_is_as_large_as_the_closed_form_says(case: str) -> None:
    model = optional_model(case)
    cache = AllMemCache(model.config)
    logits(model, text(2, 23), past_key_values=cache)
    expected = sum(mixed.state_bytes(23, torch.float64) for mixed in model.mixers())
    assert cache.nbytes == 2 * expected


@torch.no_grad()
def test_a_text_within_the_window_is_read_as_by_the_base_model() -> None:
    """With ``read_scope = lost``, and whatever the memory writes."""
    model = optional_model("read-by-what-is-lost")
    ids = text(2, W + S + 1)
    base = model(ids, full_attention=True).logits
    said = logits(model, ids)
    assert_close(said[:, : W + S], base[:, : W + S], 1e-4)
    alone = logits(without_memory(model), ids)
    assert torch.equal(said[:, : W + S], alone[:, : W + S])
    assert not torch.allclose(said[:, W + S], alone[:, W + S], atol=1e-3)


SHAPES: dict[str, dict[str, Any]] = {
    # d = 16 is a group of two query heads of 8: laying them out changes nothing.
    "identity": {},
    "cut-and-repeated": {"head_dim": 11},
    "longer-than-the-group": {"head_dim": 19},
    "two-kv-heads-on-one": {"heads": 1, "head_dim": 16},
    "one-kv-head-on-two": {"heads": 4},
}


@pytest.mark.parametrize("case", SHAPES)
def test_shared_projections_without_a_difference_are_those_of_the_attention(case: str) -> None:
    """Llama has no biases and no q and k norms: ``full`` starts from exactly what is shared."""
    memory = {**SHAPES[case], "chunk": C}
    shared = tiny_model(
        "llama", dtype=torch.float64, memory={**memory, "projections": "shared", "rank": 3}
    )
    # Still in fp32 when its projections start from the attention, then as exact as its twin.
    full = allmem.convert(base_model("llama"), window=W, sinks=S, memory=memory).double()
    parts = [f"projections.{part}." for part in "qkvo"]
    with torch.no_grad():
        theirs = shared.memory_parameters()
        for name, parameter in theirs.items():
            if any(part in name for part in parts):
                parameter.zero_()
        for name, parameter in full.memory_parameters().items():
            if "projections.g." in name:
                prefix = name.removesuffix("weight")
                parameter.copy_(theirs[f"{prefix}up"] @ theirs[f"{prefix}down"])
            elif not any(part in name for part in parts):
                parameter.copy_(theirs[name])
    ids = text(2, 33)
    with_memory = logits(shared, ids)
    # Laying averages in fp32 when the projections start.
    assert_close(logits(full, ids), with_memory, 1e-5)
    without = logits(without_memory(shared), ids)
    assert (with_memory - without).abs().max() > 1e-2


def test_lowrank_of_full_rank_is_full() -> None:
    """The nearest matrix of a rank that is high enough is the matrix itself."""
    with torch.no_grad():
        start = allmem.convert(
            base_model("llama"), window=W, sinks=S, chunk=C, memory={"projections": "lowrank"}
        ).memory_parameters()
        reference = allmem.convert(
            base_model("llama"), window=W, sinks=S, chunk=C
        ).memory_parameters()
    for layer in range(2):
        for part in "qkvo":
            name = f"layers.{layer}.memory.unit.projections.{part}"
            product = start[f"{name}.up"] @ start[f"{name}.down"]
            assert_close(product, reference[f"{name}.weight"], 1e-5)


@pytest.mark.parametrize("name", ["qwen3", "llama", "gemma3", "phi3"])
def test_the_memory_starts_where_it_says(name: str) -> None:
    """A base model's own initialisation must not draw the memory's weights anew."""
    model = allmem.convert(base_model(name), window=W, sinks=S, chunk=C)
    mixed = model.mixers()[-1]
    assert mixed.memory is not None
    unit = mixed.memory.unit
    attention = attention_weights(mixed.attention.core, attention_shape(model.config.text_config))
    assert attention.k is not None
    laid = unit.projections.lay_k.matrix() @ attention.k
    assert_close(unit.projections.k.weight.detach(), laid, 1e-6)
    assert not unit.projections.g.weight.any()
    assert not mixed.alpha.any()
    assert (unit.q_norm.weight == 1).all()


def test_converting_twice_gives_the_same_model_and_another_seed_another() -> None:
    def made(seed: int) -> str:
        torch.manual_seed(int(torch.randint(1000, ())))
        return allmem.convert(base_model(), window=W, sinks=S, chunk=C, seed=seed).fingerprint()

    assert made(0) == made(0)
    assert made(0) != made(1)
