"""The ground on which an arena is held: the teacher's shape, and what entrants would add to it.

Everything is counted on models without weights, by the mixers' own closed forms.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from allmem.arena.config import ArenaConfig
from allmem.choices import Conversion
from allmem.config import WindowConfig
from allmem.cost.flops import mixing, readings
from allmem.memory.projections import AttentionWeights
from allmem.mixers.matching import Slot
from allmem.models.conversion import convert
from allmem.models.modeling import AllMemForCausalLM
from allmem.models.structure import attention_shape
from allmem.opening import outline

__all__ = ["Ground", "Totals"]


@dataclass(frozen=True)
class Totals:
    """What a converted model adds to the window alone, all layers together."""

    parameters: int
    """That are trained, alphas included."""
    state_bytes: int
    """Kept of one sequence beyond what the window keeps, on the device that computes."""
    elsewhere: int
    """Bytes that are kept on another device."""
    flops: float
    """Of a token, prefill average, attention and memory layers."""
    memory_layers: int
    memory_bytes: int
    """Of ``state_bytes`` those of memories."""
    trainable: bool
    """Whether there is anything to train but alphas."""


class Ground:
    """Counts for one teacher, one window and one length.

    Args:
        config: of the arena.
        length: tokens that are read.

    Raises:
        AllMemError: if there is no such teacher, or it cannot be converted.
    """

    def __init__(self, config: ArenaConfig, length: int) -> None:
        self.sizes, self.length = config.sizes, length
        found = outline(config.teacher, self.window(), config.dtype)
        self.dtype = found.dtype
        base: PreTrainedConfig = found.model.config.text_config
        self.base = base
        self.layers = int(base.num_hidden_layers)
        window = found.model.mixers()
        self.window_bytes = sum(mixed.state_bytes(length, self.dtype) for mixed in window)

    def window(self, window: int | None = None, sinks: int | None = None) -> Conversion:
        """The window alone, in every layer; its own size or another."""
        sizes = self.sizes
        chosen = sizes.window if window is None else window
        return Conversion(chosen, sizes.sinks if sinks is None else sinks, mixers="window")

    def model(self, conversion: Conversion) -> AllMemForCausalLM:
        """The teacher as it would be converted, without weights."""
        with torch.device("meta"), warnings.catch_warnings():
            # What is only tried needs no advice.
            warnings.simplefilter("ignore", UserWarning)
            base = AutoModelForCausalLM.from_config(self.base)
            return convert(base, **conversion.arguments())

    def totals(self, model: AllMemForCausalLM) -> Totals:
        """What it adds."""
        state = elsewhere = memory = layers = 0
        trainable = False
        for mixed in model.mixers():
            attention = mixed.attention.state_bytes(self.length, self.dtype)
            whole = mixed.state_bytes(self.length, self.dtype)
            away = max(0, attention - mixed.attention.device_bytes(self.length, self.dtype))
            state, elsewhere = state + whole - away, elsewhere + away
            if mixed.memory is not None:
                memory += whole - attention
                layers += 1
                trainable |= mixed.memory.capabilities.trainable
        reading = readings(model)[2]
        return Totals(
            sum(p.numel() for p in model.memory_parameters().values()),
            state - self.window_bytes,
            elsewhere,
            mixing(reading.prefill(self.length)) / self.length,
            layers,
            memory,
            trainable,
        )

    def slot(self) -> Slot:
        """Where a memory stands in a layer."""
        shape = attention_shape(self.base)
        return Slot(
            shape.hidden_size,
            AttentionWeights(shape.query_heads, shape.kv_heads, shape.head_dim),
            WindowConfig(self.sizes.window, self.sizes.sinks),
            self.sizes.steps,
            self.dtype,
            self.length,
        )
