"""Tiny random models of every architecture under test, and the few calls that the tests share.

All slow weights are drawn at random, alpha and the rates included, and window, sinks and chunk are
so small that a text of a few dozen tokens turns the ring over and closes many chunks.

Letters: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers import models as architectures

import allmem
from allmem.models.cache import AllMemCache
from allmem.models.modeling import AllMemForCausalLM

V, W, S, C = 61, 12, 3, 5
PAD, EOS, BOS = 0, 1, 2
FIRST_WORD = 3

SHAPE = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": PAD,
    "eos_token_id": EOS,
    "bos_token_id": BOS,
}
LOCAL_THEN_FULL = ["sliding_attention", "full_attention"]


def _config(family: str, **own: Any) -> Callable[[], Any]:
    return lambda: getattr(architectures, family)(**{**SHAPE, **own})


BASES: dict[str, Callable[[], Any]] = {
    # heads * head_dim = 64 is not the hidden size
    "qwen3": _config("Qwen3Config", head_dim=16, tie_word_embeddings=True),
    "qwen2": _config("Qwen2Config", tie_word_embeddings=True),
    "llama": _config("LlamaConfig", tie_word_embeddings=False),
    "llama-one-kv-head": _config("LlamaConfig", num_key_value_heads=1),
    "mistral": _config("MistralConfig", sliding_window=None),
    # A window of its own beyond W: the layer becomes one with a memory.
    "mistral-wider": _config("MistralConfig", sliding_window=20),
    # The first layer is NoPE.
    "smollm3": _config("SmolLM3Config", no_rope_layers=[0, 1], use_sliding_window=False),
    # Norms after the block, q and k norms over all heads.
    "olmo2": _config("Olmo2Config"),
    # Fused projections, half of each head rotated.
    "phi3": _config("Phi3Config", partial_rotary_factor=0.5, sliding_window=None),
    "phi3-longrope": _config(
        "Phi3Config",
        sliding_window=None,
        original_max_position_embeddings=128,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0, 1.1, 1.3, 2.0],
            "long_factor": [1.0, 2.0, 4.0, 8.0],
            "original_max_position_embeddings": 128,
        },
    ),
    "llama-dynamic": _config(
        "LlamaConfig",
        max_position_embeddings=128,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
    ),
    "qwen3-yarn": _config(
        "Qwen3Config",
        head_dim=16,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    # One layer that is local already, with a window below W, and one that is converted.
    "gemma3": _config(
        "Gemma3TextConfig",
        head_dim=16,
        query_pre_attn_scalar=24,
        sliding_window=6,
        layer_types=LOCAL_THEN_FULL,
        tie_word_embeddings=True,
    ),
    "qwen3-local-first": _config(
        "Qwen3Config",
        head_dim=16,
        use_sliding_window=True,
        sliding_window=6,
        layer_types=LOCAL_THEN_FULL,
    ),
    "qwen3-moe": _config(
        "Qwen3MoeConfig",
        head_dim=16,
        moe_intermediate_size=24,
        num_experts=4,
        num_experts_per_tok=2,
    ),
}

OWN_WINDOW = {"gemma3": [6, None], "qwen3-local-first": [6, None], "mistral-wider": [20, 20]}
"""The windows that layers of a base have by themselves; ``None`` for full attention."""


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0, std: float = 0.2) -> None:
    """Noise on every weight of a plain model, its norms and biases too."""
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.add_((std * noise).to(parameter.dtype))


@torch.no_grad()
def randomise_memory(model: AllMemForCausalLM, seed: int = 0, std: float = 0.2) -> None:
    """Noise on every slow weight: alpha, taps, norms, rates, gates, projections, initial weights.

    The noise of a matrix is that of its fan-in, so that the memory stays of the size of its input.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.memory_parameters().items()):
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        wide = parameter.dim() > 1 and "convolutions" not in name and "norm" not in name
        scale = parameter.shape[-1] ** -0.5 if wide else std
        if name.endswith("eta.bias"):
            # Rates of about 0.1 to 0.3: the memory changes with every chunk and stays stable.
            parameter.fill_(-1.7)
        parameter.add_((scale * noise).to(parameter.dtype))


def base_model(name: str = "qwen3", seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A plain model with random weights: the same ones for the same name and seed."""
    torch.manual_seed(seed)
    config = BASES[name]()
    for key, value in changes.items():
        setattr(config, key, value)
    model = AutoModelForCausalLM.from_config(config).eval()
    randomise(model, seed)
    return model


def tiny_model(
    name: str = "qwen3", seed: int = 0, dtype: torch.dtype = torch.float32, **options: Any
) -> AllMemForCausalLM:
    """The base of that name and seed, converted, with random slow weights."""
    options = {"window": W, "sinks": S, **options}
    if "mixers" not in options or "allmem" in str(options["mixers"]):
        options.setdefault("chunk", C)
    model = allmem.convert(base_model(name, seed), **options)
    randomise_memory(model, seed + 1)
    return model.to(dtype)


@torch.no_grad()
def without_memory(model: AllMemForCausalLM) -> AllMemForCausalLM:
    """The same model with alpha = 0: what it is right after conversion."""
    for name, parameter in model.memory_parameters().items():
        if name.endswith("alpha"):
            parameter.zero_()
    return model


def text(rows: int, length: int, seed: int = 0) -> Tensor:
    """[B, T] random tokens, none of them special."""
    generator = torch.Generator().manual_seed(seed + 1000)
    return torch.randint(FIRST_WORD, V, (rows, length), generator=generator)


@torch.no_grad()
def logits(model: nn.Module, ids: Tensor, **arguments: Any) -> Tensor:
    """[B, T, V] of one call."""
    return model(input_ids=ids, **arguments).logits


@torch.no_grad()
def read(model: AllMemForCausalLM, ids: Tensor, **arguments: Any) -> AllMemCache:
    """What reading ``ids`` leaves behind."""
    return model(input_ids=ids, use_cache=True, **arguments).past_key_values


@torch.no_grad()
def logits_in_calls(
    model: AllMemForCausalLM,
    pieces: Iterable[Tensor],
    cache: AllMemCache | None = None,
    **arguments: Any,
) -> Tensor:
    """[B, T, V] of a text that is read piece by piece."""
    cache = AllMemCache(model.config) if cache is None else cache
    outputs = [
        model(input_ids=piece, past_key_values=cache, use_cache=True, **arguments).logits
        for piece in pieces
    ]
    return torch.cat(outputs, dim=1)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Equal up to ``tolerance``, absolutely and relatively; NaN equals nothing."""
    assert torch.isfinite(expected).all()
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


def batch_of(rows: Sequence[Sequence[int | None]]) -> tuple[Tensor, Tensor]:
    """Token ids and mask [B, T] of rows in which ``None`` stands for padding."""
    ids = torch.tensor([[PAD if t is None else t for t in row] for row in rows])
    mask = torch.tensor([[0 if t is None else 1 for t in row] for row in rows])
    return ids, mask
