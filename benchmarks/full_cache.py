"""A cache of all keys and values with room to grow: full attention is not charged for copies.

transformers' ``DynamicCache`` copies everything that it holds at every token. Here new keys and
values are written behind the old ones, and attention sees a view: the same results, and what the
attention costs by itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

__all__ = ["kv_bytes", "roomy", "roomy_random"]


class RoomyLayer(DynamicLayer):
    """One layer.

    Args:
        keys, values: [B, K, M, E], of which ``length`` are written.
    """

    def __init__(self, keys: Tensor, values: Tensor, length: int) -> None:
        super().__init__()
        self.all_keys, self.all_values = keys, values
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self.keys, self.values = keys[:, :, :length], values[:, :, :length]

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Keys and values with ``key_states`` and ``value_states`` [B, K, N, E] behind them.

        Raises:
            ValueError: if there is no room for them.
        """
        before = self.keys.shape[2]
        after = before + key_states.shape[2]
        if after > self.all_keys.shape[2]:
            raise ValueError(f"{after} tokens do not fit into {self.all_keys.shape[2]}")
        self.all_keys[:, :, before:after] = key_states
        self.all_values[:, :, before:after] = value_states
        self.keys, self.values = self.all_keys[:, :, :after], self.all_values[:, :, :after]
        return self.keys, self.values


def roomy(cache: Cache, room: int) -> Cache:
    """What a cache holds, with room for so many tokens more."""

    def wider(x: Tensor) -> Tensor:
        return torch.cat([x, x.new_empty(*x.shape[:2], room, x.shape[3])], 2)

    layers = [RoomyLayer(wider(x.keys), wider(x.values), x.keys.shape[2]) for x in cache.layers]
    return Cache(layers=layers)


def roomy_random(model: PreTrainedModel, length: int, room: int, rows: int = 1) -> Cache:
    """A cache as after reading ``length`` tokens in each row, with random keys and values."""
    config = model.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shape = rows, config.num_key_value_heads, length + room, size

    def drawn() -> Tensor:
        return torch.empty(shape, dtype=model.dtype, device=model.device).normal_()

    layers = range(config.num_hidden_layers)
    return Cache(layers=[RoomyLayer(drawn(), drawn(), length) for _ in layers])


def kv_bytes(model: PreTrainedModel) -> int:
    """Of all keys and values of one token."""
    one = roomy_random(model, 1, 0)
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in one.layers)
