"""RoPE scaling without training against transformers' own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, PreTrainedModel

from allmem.errors import AllMemError
from allmem.models.rope_scaling import RopeScaling, scaled

TRAINED = 64
THETA = 1e4
E = 8


def config(**rope: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=31,
        hidden_size=24,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=3,
        head_dim=E,
        max_position_embeddings=TRAINED,
        initializer_range=0.4,
        rope_parameters={"rope_type": "default", "rope_theta": THETA, **rope},
    )


def base() -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config()).eval()
    return model


def theirs(model: PreTrainedModel, **rope: Any) -> torch.Tensor:
    """What transformers computes with the same weights under such a configuration."""
    other = AutoModelForCausalLM.from_config(config(**rope)).eval()
    other.load_state_dict(model.state_dict())
    return logits(other)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(3 * TRAINED)[None] * 7 % 31
    found: torch.Tensor = model(ids).logits
    return found


@pytest.mark.parametrize(
    ("kind", "rope"),
    [
        ("linear", {"rope_type": "linear", "factor": 4.0}),
        (
            "yarn",
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": TRAINED},
        ),
        # The slowest of the pairs turns as with positions divided by 4, the fastest as before.
        ("ntk", {"rope_theta": THETA * 4 ** (E / (E - 2))}),
    ],
)
def test_it_is_what_transformers_computes(kind: str, rope: dict[str, Any]) -> None:
    model = base()
    before = logits(model)
    found = scaled(model, RopeScaling(kind, 4))
    assert torch.equal(logits(found), theirs(model, **rope))
    assert not torch.allclose(logits(found), before, atol=1e-3)
    assert found.config.max_position_embeddings == 4 * TRAINED
    # The other one is as it was, and the weights are shared.
    assert torch.equal(logits(model), before)
    assert model.config.max_position_embeddings == TRAINED
    pairs = zip(found.parameters(), model.parameters(), strict=True)
    assert all(mine is other for mine, other in pairs)


def test_ntk_stretches_the_slowest_pair_by_the_factor() -> None:
    model = base()
    slow = [m.base_model.rotary_emb.inv_freq for m in (model, scaled(model, RopeScaling("ntk", 4)))]
    torch.testing.assert_close(slow[0][-1] / slow[1][-1], torch.tensor(4.0))
    torch.testing.assert_close(slow[0][0], slow[1][0])


def test_it_is_read_from_what_a_user_writes() -> None:
    assert RopeScaling.parse("yarn:4") == RopeScaling("yarn", 4.0)
    assert str(RopeScaling.parse("ntk:2.5")) == "ntk 2.5"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("yarn", "not of the form"),
        ("yarn:much", "not of the form"),
        ("yarm:4", "did you mean 'yarn'"),
        ("yarn:1", "above 1"),
        ("yarn:nan", "above 1"),
    ],
)
def test_anything_else_is_refused(text: str, said: str) -> None:
    with pytest.raises(AllMemError, match=said):
        RopeScaling.parse(text)


def test_models_whose_positions_are_otherwise_are_refused() -> None:
    model = scaled(base(), RopeScaling("yarn", 2))
    with pytest.raises(AllMemError, match="its RoPE is 'yarn'"):
        scaled(model, RopeScaling("yarn", 2))
    sizes = copy.deepcopy(config().to_dict())
    kept = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim")
    gemma = Gemma3TextConfig(**{k: sizes[k] for k in kept}, num_attention_heads=3)
    with pytest.raises(AllMemError, match="one for each kind of layers"):
        scaled(AutoModelForCausalLM.from_config(gemma), RopeScaling("yarn", 2))
