"""Models with random weights in known shapes, so that nothing has to be downloaded: what a model
costs does not depend on what its weights are.

A memory's scale alpha starts at zero, and then no gradient passes it and no error in it shows; here
it is drawn.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)

import allmem
from allmem.cost.shapes import SHAPES as PAPER
from allmem.models.cpu_products import fast_products
from allmem.models.modeling import AllMemForCausalLM

__all__ = ["SHAPES", "Shape", "converted", "plain"]


@dataclass(frozen=True)
class Shape:
    """A decoder and the sizes that it is read with."""

    title: str
    kind: type[PreTrainedConfig]
    sizes: dict[str, Any]
    window: int
    sinks: int
    chunk: int
    memory: dict[str, Any] = field(default_factory=dict)

    def config(self, layers: int | None = None) -> PreTrainedConfig:
        sizes = self.sizes if layers is None else {**self.sizes, "num_hidden_layers": layers}
        return self.kind(**sizes)

    @property
    def layers(self) -> int:
        return int(self.sizes["num_hidden_layers"])

    def loop(self) -> dict[str, Any]:
        """Sizes of a memory layer: hidden size, query heads, memory heads, head size, width."""
        hidden, heads = self.sizes["hidden_size"], self.sizes["num_key_value_heads"]
        head_dim = self.memory.get("head_dim", hidden // heads)
        return {
            "hidden": hidden,
            "queries": self.sizes["num_attention_heads"],
            "heads": heads,
            "head_dim": head_dim,
            "width": self.memory.get("width", head_dim),
        }


SHAPES = {
    "smollm2": Shape(
        "SmolLM2-135M",
        LlamaConfig,
        {
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
        },
        window=1024,
        sinks=16,
        chunk=512,
    ),
    "qwen3-0.6b": Shape("Qwen3-0.6B", Qwen3Config, PAPER["qwen3-0.6b"], 4096, 128, 2048),
    "qwen3-1.7b": Shape("Qwen3-1.7B", Qwen3Config, PAPER["qwen3-1.7b"], 4096, 128, 2048),
    # For quick runs and for studies of growth.
    "tiny": Shape(
        "a tiny Qwen3",
        Qwen3Config,
        {
            "vocab_size": 512,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 40960,
            "tie_word_embeddings": True,
        },
        window=64,
        sinks=4,
        chunk=32,
    ),
}


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def plain(
    shape: Shape,
    dtype: torch.dtype = torch.bfloat16,
    device: str | torch.device = "cpu",
    layers: int | None = None,
    seed: int = 0,
) -> PreTrainedModel:
    """The base model, with random weights; always the same ones for a seed."""
    torch.manual_seed(seed)
    config = shape.config(layers)
    with torch.device(device), _default_dtype(dtype):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    if torch.device(device).type == "cpu":
        # As every way of loading a model here does; elsewhere it would only take time.
        fast_products(model, model.get_output_embeddings())
    return model


@torch.no_grad()
def converted(
    shape: Shape,
    dtype: torch.dtype = torch.bfloat16,
    device: str | torch.device = "cpu",
    layers: int | None = None,
    mixers: str = "allmem",
    alpha: float = 0.1,
    **changes: Any,
) -> AllMemForCausalLM:
    """The same model with memories, whose alphas are drawn around zero.

    Args:
        alpha: their standard deviation.
        changes: ``window``, ``sinks``, ``chunk`` and ``memory`` in place of the shape's.
    """
    sizes: dict[str, Any] = {"window": shape.window, "sinks": shape.sinks}
    if mixers == "allmem":
        sizes |= {"chunk": shape.chunk, "memory": shape.memory or None}
    model = allmem.convert(
        plain(shape, dtype, device, layers), mixers=mixers, check=False, **{**sizes, **changes}
    )
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.memory_parameters().items():
        if name.endswith("alpha"):
            parameter.copy_(alpha * torch.randn(parameter.shape, generator=generator))
    return model.eval()
