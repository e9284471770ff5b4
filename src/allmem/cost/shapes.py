"""The shapes of the paper's models, so that their cost can be counted without their weights.

From their configurations on the hub (Qwen/Qwen3-0.6B, Qwen/Qwen3-1.7B).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from allmem.choices import Conversion
from allmem.errors import AllMemError, unknown_name
from allmem.models.conversion import convert
from allmem.opening import DTYPES, Outline, outline

__all__ = ["SHAPES", "outline_shape"]

_QWEN3: dict[str, Any] = {
    "vocab_size": 151936,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": _QWEN3 | {"hidden_size": 1024, "intermediate_size": 3072},
    "qwen3-1.7b": _QWEN3 | {"hidden_size": 2048, "intermediate_size": 6144},
}
"""Arguments of ``Qwen3Config`` by the name of the shape."""


def outline_shape(
    source: str, conversion: Conversion | None = None, dtype: str | None = None
) -> Outline:
    """As ``allmem.opening.outline``, which knows all sources but the names in ``SHAPES``; a folder
    of such a name comes first.

    Raises:
        AllMemError: if there is no such model, or if it cannot be converted.
    """
    if source not in SHAPES or Path(source).exists():
        return outline(source, conversion, dtype)
    if dtype is not None and dtype not in DTYPES:
        raise AllMemError(unknown_name("dtype", dtype, DTYPES))
    config = Qwen3Config(**SHAPES[source])
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(config)
        model = convert(base, **(conversion or Conversion()).arguments())
    return Outline(model, getattr(torch, dtype or "bfloat16"), converted=False)
