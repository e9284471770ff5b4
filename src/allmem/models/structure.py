"""What the converter must know of a base model: its decoder layers, their attentions, their RoPE.

Everything here follows transformers' conventions (``model.layers[i].self_attn``, ``o_proj``,
``rotary_emb``) and says in one line which one a model breaks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from allmem.attention.rotary import Rotary
from allmem.config import WindowConfig
from allmem.errors import AllMemError
from allmem.memory.projections import AttentionWeights
from allmem.mixers.attention import AttentionShape
from allmem.mixers.layer import LayerMixer

__all__ = [
    "attention_shape",
    "attention_weights",
    "check_supported",
    "decoder_layers",
    "layer_rotary",
    "own_window",
]


def _cannot(model: PreTrainedModel, why: str) -> AllMemError:
    return AllMemError(f"cannot convert {type(model).__name__}: {why}")


def check_supported(model: PreTrainedModel) -> None:
    """Refuse a model that the converter cannot get right.

    Raises:
        AllMemError: naming the convention that the model does not follow.
    """
    config = model.config
    if config.is_encoder_decoder:
        raise _cannot(
            model, "it is an encoder-decoder; only decoder-only language models have one memory"
        )
    if getattr(model, "lm_head", None) is None:
        raise _cannot(model, "it has no language-model head; load it with AutoModelForCausalLM")
    if not getattr(type(model), "_supports_attention_backend", False):
        raise _cannot(model, "its attention does not go through transformers' AttentionInterface")
    if getattr(config, "use_bidirectional_attention", False):
        raise _cannot(model, "its attention is bidirectional")
    if getattr(config, "attention_chunk_size", None):
        raise _cannot(model, "its attention is local to fixed chunks (attention_chunk_size)")
    for layer in decoder_layers(model):
        attention = getattr(layer, "self_attn", None)
        if attention is None:
            raise _cannot(
                model, "a decoder layer has no self_attn (it may mix tokens in another way)"
            )
        if isinstance(attention, LayerMixer):
            raise _cannot(model, "it was converted already; use what convert returned")
        if not hasattr(attention, "o_proj"):
            raise _cannot(model, f"{type(attention).__name__} has no o_proj")
        for name in ("attn_logit_softcapping", "logit_cap"):
            if getattr(attention, name, None):
                raise _cannot(
                    model, f"its attention caps scores ({name}), which the window does not"
                )
        if getattr(attention, "sinks", None) is not None:
            raise _cannot(
                model, "its attention has learned sink logits, which the window does not compute"
            )
    if getattr(model.base_model, "rotary_emb", None) is None:
        raise _cannot(model, "it has no rotary positions, which re-positioned sinks need")


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers of a causal language model."""
    layers = getattr(model.base_model, "layers", None)
    if not isinstance(layers, nn.ModuleList) or len(layers) == 0:
        raise _cannot(model, f"{type(model.base_model).__name__} has no list of decoder layers")
    return layers


def attention_shape(config: PreTrainedConfig) -> AttentionShape:
    """Sizes of the attention, from a base model's configuration."""
    heads = config.num_attention_heads
    return AttentionShape(
        hidden_size=config.hidden_size,
        query_heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
    )


def attention_weights(attention: Any, shape: AttentionShape) -> AttentionWeights:
    """The attention's projections as plain matrices (biases left out: they carry no content)."""
    q_size, kv_size = shape.query_heads * shape.head_dim, shape.kv_heads * shape.head_dim
    if hasattr(attention, "qkv_proj"):
        q, k, v = attention.qkv_proj.weight.detach().split([q_size, kv_size, kv_size])
    else:
        q, k, v = (getattr(attention, f"{n}_proj").weight.detach() for n in ("q", "k", "v"))
    matrices: dict[str, Any] = {
        "q": q,
        "k": k,
        "v": v,
        "o": attention.o_proj.weight.detach(),
    }
    if any(m is not None and m.is_meta for m in matrices.values()):
        matrices = dict.fromkeys(matrices)
    return AttentionWeights(shape.query_heads, shape.kv_heads, shape.head_dim, **matrices)


def own_window(config: PreTrainedConfig, layer: int) -> int | None:
    """The window of a layer that is local already (Gemma 3, Mistral v0.1, Phi-3), else ``None``."""
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    if types is not None:
        return window if types[layer] == "sliding_attention" else None
    return window


def layer_rotary(
    model: PreTrainedModel, attention: nn.Module, layer: int, window: WindowConfig
) -> Rotary | None:
    """The RoPE of a layer with exact frequencies, or ``None`` for a layer without positions
    (SmolLM3).

    Frequencies that depend on the length are frozen at S + W.
    """
    if not getattr(attention, "use_rope", True):
        return None
    types = getattr(model.config, "layer_types", None)
    key = types[layer] if types is not None else None
    # A fresh one, on the CPU: the model's own may be on the meta device, in half precision, or may
    # have changed its frequencies with the lengths that it met.
    with torch.device("cpu"):
        module: Any = type(model.base_model.rotary_emb)(config=model.config)
        per_type = hasattr(module, f"{key}_inv_freq")
        extra = {"layer_type": key} if per_type else {}
        last = torch.tensor([[window.sinks + window.window - 1]])
        cos, _ = module(torch.zeros(1, dtype=torch.float32), last, **extra)
        prefix = f"{key}_" if per_type else ""
        frequencies = getattr(module, f"{prefix}inv_freq").double().tolist()
        scaling = float(getattr(module, f"{prefix}attention_scaling"))
        rotary = Rotary(tuple(frequencies), scaling)
        expected, _ = rotary.table(last, torch.float32)
        agrees = cos.shape == expected.shape and torch.allclose(cos, expected, atol=1e-2)
    if not agrees:
        raise _cannot(
            model, "its rotary positions are laid out in a way that re-positioned sinks do not know"
        )
    return rotary
