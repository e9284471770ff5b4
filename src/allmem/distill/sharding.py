"""Sharding a model over processes by FSDP2's ``fully_shard``, without accelerate in between: its
plugin gives silently wrong gradients on CPUs.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from allmem.models.modeling import AllMemForCausalLM
from allmem.models.structure import decoder_layers

__all__ = ["Placed", "shard"]


def shard(model: AllMemForCausalLM) -> None:
    """Shard every decoder layer, its frozen weights and its memory, over all processes.

    Embeddings, the last norm and the head stay whole: they are frozen, small beside the layers, and
    the loss reads the head block by block.
    """
    from torch.distributed.fsdp import fully_shard

    layers = list(decoder_layers(model.base))
    for layer in layers:
        fully_shard(layer)
    inner: Any = model.base.base_model
    sharded = {id(p) for layer in layers for p in layer.parameters()}
    whole = {p for p in inner.parameters() if id(p) not in sharded}
    # The root schedules the layers' communication; it has no weights of its own to shard.
    fully_shard(inner, ignored_params=whole)


class Placed(nn.Module):
    """A module that is where it belongs already."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)
