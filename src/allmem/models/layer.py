"""MixedAttention: what stands in the place of a decoder layer's ``self_attn``.

It speaks transformers' language on one side and the mixers' on the other. One forward call of the
model travels through the layers as a ``Call``; nothing of it stays on a module.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from allmem.config import WindowConfig
from allmem.errors import AllMemError
from allmem.layout import Layout
from allmem.mixers.attention import ATTENTION_NAME, AttentionMixer, FullMixer, WindowMixer
from allmem.mixers.base import Mixer
from allmem.mixers.layer import LayerMixer, LayerState
from allmem.mixers.registry import Place, attention_kind, memory_kind
from allmem.models.configuration import LOCAL, AllMemConfig
from allmem.models.structure import (
    attention_shape,
    attention_weights,
    decoder_layers,
    layer_rotary,
    own_window,
)

SEED_STRIDE = 1_000_003
"""Keeps the generators of layers and seeds apart."""

__all__ = [
    "Call",
    "LayerCall",
    "Mix",
    "MixedAttention",
    "Observer",
    "mixer_around",
    "route_attention",
]


class LayerCall(Protocol):
    """One forward call on its way through the decoder layers."""

    def read(
        self,
        mixed: MixedAttention,
        hidden_states: Tensor,
        table: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """What a layer's mixing makes of its hidden states; the same shape.

        Args:
            table: cos and sin of the base model, of the slots of the hidden states.
        """


@dataclass
class Call:
    """A call that reads rows of a grid, with the states of all layers."""

    layout: Layout
    before: Sequence[LayerState] | None
    """One state per layer; ``None`` where nothing was read yet."""
    full_attention: bool = False
    observe: Observer | None = None
    mix: Mix | None = None
    """What computes a layer; ``None`` for the layer itself."""
    after: dict[int, LayerState] | None = field(default_factory=dict)
    """By layer; ``None`` once they were taken."""

    def leave(self, layer: int, state: LayerState) -> None:
        """Take down what a layer left behind; nothing where a checkpoint reads the layer again,
        since that would tie the graph of the second reading to the call, and the call to it."""
        if self.after is not None:
            self.after[layer] = state

    def read(
        self,
        mixed: MixedAttention,
        hidden_states: Tensor,
        table: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """As ``LayerCall`` has it; hidden states of the grid, [B, T, D]."""
        layout = self.layout
        x = layout.gather(hidden_states)
        if self.full_attention:
            assert table is not None
            cos, sin = (layout.gather(t.expand(len(hidden_states), -1, -1)) for t in table)
            y = mixed.teacher(x, layout, (cos, sin))
            if self.observe is not None:
                self.observe(mixed, x, y, layout)
        else:
            if self.before is None:
                # Here and not before the call: a layer's weights may be elsewhere until its turn
                # (another device, another process's shard).
                before = mixed.state_before(x.shape[0], x.dtype, x.device, layout)
            else:
                before = self.before[mixed.layer]
            mix = self.mix or LayerMixer.forward
            y, after = mix(mixed, x, before, layout)
            self.leave(mixed.layer, after)
        return layout.scatter(y)

    def take_states(self) -> list[LayerState]:
        """What the call left behind, one per layer; once."""
        assert self.after is not None
        after, self.after = self.after, None
        return [after[layer] for layer in sorted(after)]


class MixedAttention(LayerMixer):
    """A ``LayerMixer`` in the place of a decoder layer's ``self_attn``."""

    def __init__(
        self, layer: int, attention: AttentionMixer, memory: Mixer | None, own_window: int | None
    ) -> None:
        super().__init__(attention, memory)
        self.layer = layer
        self.own_window = own_window

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        """As ``LayerMixer.forward`` if given a state, else as transformers calls ``self_attn``."""
        if args or "state" in kwargs:
            return super().forward(hidden_states, *args, **kwargs)
        call: LayerCall | None = kwargs.get("allmem_call")
        if call is None:
            raise AllMemError(
                "the base model inside an AllMemForCausalLM was called by itself; call the "
                "AllMemForCausalLM (with full_attention=True for the original model's function)"
            )
        return call.read(self, hidden_states, kwargs.get("position_embeddings")), None

    def teacher(self, x: Tensor, layout: Layout, table: tuple[Tensor, Tensor]) -> Tensor:
        """What this layer computed before conversion: its own attention and no memory.

        Args:
            table: cos and sin of the base model, whose frequencies may depend on the length.
        """
        parts = (self.attention.core, self.attention.shape, self.attention.rotary)
        attention: AttentionMixer
        if self.own_window is None:
            attention = FullMixer(*parts)
        else:
            attention = WindowMixer(*parts, WindowConfig(self.own_window), fixed=True)
        state = attention.init_state(x.shape[0], x.dtype, x.device)
        return attention.attend(x, state, layout, table=table)[0]


Mix = Callable[[LayerMixer, Tensor, LayerState, Layout], tuple[Tensor, LayerState]]
"""As ``LayerMixer.forward``."""

Observer = Callable[[MixedAttention, Tensor, Tensor, Layout], None]
"""Sees a layer of the teacher at work: the layer, what entered its attention and what its own, full
attention made of it (both [R, N, D]), and where the tokens stand."""


def mixer_around(
    base: PreTrainedModel, config: AllMemConfig, layer: int, seed: int
) -> MixedAttention:
    """What stands in the place of a decoder layer's ``self_attn``, around it.

    Args:
        seed: of the memory's random starting values.
    """
    decoder_layer: Any = decoder_layers(base)[layer]
    core = decoder_layer.self_attn
    name = config.layer_names[layer]
    shape = attention_shape(config.text_config)
    window = config.window_config
    rotary = layer_rotary(base, core, layer, window)
    own = own_window(config.text_config, layer)
    policy = None if name == LOCAL else attention_kind(name)
    attention: AttentionMixer
    if name == LOCAL:
        local = WindowConfig(own or window.window)
        attention = WindowMixer(core, shape, rotary, local, fixed=True)
    elif name == "full":
        attention = FullMixer(core, shape, rotary)
    elif policy is not None:
        place = Place.of(layer, config.layer_names)
        options = config.options_of(name)
        attention = policy.build(core, shape, rotary, window, options, place)
    else:
        attention = WindowMixer(core, shape, rotary, window)
    kind = None if name == LOCAL else memory_kind(name)
    memory = None
    if kind is not None:
        with torch.random.fork_rng(devices=[]):
            # Not the caller's generator: a text that one process has read and another continues
            # must meet the same memory.
            torch.manual_seed(seed * SEED_STRIDE + layer)
            memory = kind.make(
                shape.hidden_size, config.options_of(name), attention_weights(core, shape), window
            )
    mixed = MixedAttention(layer, attention, memory, own)
    weight = core.o_proj.weight
    if not weight.is_meta:
        _place(mixed, weight.device, weight.dtype)
    return mixed.train(core.training)


def route_attention(base: PreTrainedModel) -> None:
    """Let the attention modules call ours: on a copy of the configuration, since the caller may
    build other models from the same object."""
    shared, own = base.config, copy.deepcopy(base.config)
    own._attn_implementation = ATTENTION_NAME
    for module in base.modules():
        if getattr(module, "config", None) is shared:
            module.config = own


def _place(mixed: MixedAttention, device: torch.device, dtype: torch.dtype) -> None:
    """Move a layer's new weights beside its old ones, some of them in fp32 at least."""
    keep = mixed.memory.keep_fp32 if mixed.memory is not None else ()
    if mixed.memory is not None:
        module: Any
        for module in mixed.memory.modules():
            # Else the base model's `_init_weights` would draw our linear maps anew.
            module._is_hf_initialized = True
    for name, parameter in mixed.slow_parameters().items():
        precise = any(f".{part}." in f".{name}." for part in keep)
        target = torch.promote_types(dtype, torch.float32) if precise else dtype
        parameter.data = parameter.data.to(device, target)
