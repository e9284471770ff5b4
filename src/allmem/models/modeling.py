"""AllMemForCausalLM: any decoder-only language model with a memory of constant size.

The base model stays as transformers wrote it; each decoder layer's ``self_attn`` is replaced by a
``MixedAttention`` that holds it and stands a memory beside it. State travels through the call as an
``AllMemCache``, never on modules.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from allmem.config import WindowConfig
from allmem.errors import AllMemError
from allmem.layout import Layout
from allmem.mixers.attention import ATTENTION_NAME, AttentionMixer, FullMixer, WindowMixer
from allmem.mixers.base import Mixer
from allmem.mixers.layer import LayerMixer, LayerState
from allmem.mixers.registry import memory_kind
from allmem.models.cache import AllMemCache, config_key
from allmem.models.configuration import LOCAL, AllMemConfig
from allmem.models.fingerprint import fingerprint
from allmem.models.structure import (
    attention_shape,
    attention_weights,
    check_supported,
    decoder_layers,
    layer_rotary,
    own_window,
)

__all__ = ["AllMemForCausalLM", "MixedAttention", "Observer", "route_attention"]

READ_BLOCK = 2048
"""Without gradients, longer inputs are read in blocks of this many slots, so that activations do
not grow with the input."""


@dataclass
class _Call:
    """One forward call on its way through the decoder layers."""

    layout: Layout
    before: list[LayerState]
    after: list[LayerState]
    full_attention: bool
    observe: Observer | None = None


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
        call: _Call | None = kwargs.get("allmem_call")
        if call is None:
            raise AllMemError(
                "the base model inside an AllMemForCausalLM was called by itself; call the "
                "AllMemForCausalLM (with full_attention=True for the original model's function)"
            )
        layout = call.layout
        x = layout.gather(hidden_states)
        if call.full_attention:
            table = [
                layout.gather(part.expand(len(hidden_states), -1, -1))
                for part in kwargs["position_embeddings"]
            ]
            y = self._teacher(x, layout, (table[0], table[1]))
            if call.observe is not None:
                call.observe(self, x, y, layout)
        else:
            y, call.after[self.layer] = super().forward(x, call.before[self.layer], layout)
        return layout.scatter(y), None

    def _teacher(self, x: Tensor, layout: Layout, table: tuple[Tensor, Tensor]) -> Tensor:
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


Observer = Callable[[MixedAttention, Tensor, Tensor, Layout], None]
"""Sees a layer of the teacher at work: the layer, what entered its attention and what its own, full
attention made of it (both [R, N, D]), and where the tokens stand."""


class AllMemForCausalLM(PreTrainedModel, GenerationMixin):
    """A converted language model, made by ``allmem.convert`` or ``from_pretrained``.

    Args:
        config: of the converted model.
        base: the pretrained model to convert in place; ``None`` builds an untrained one.
    """

    config_class = AllMemConfig
    config: AllMemConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_attention_backend = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _skip_keys_device_placement = ("past_key_values", "allmem_call")
    # Small numbers whose rounding matters: rates and the start of the fast weights.
    _keep_in_fp32_modules_strict = ("unit.eta", "unit.beta", "unit.initial")

    def __init__(self, config: AllMemConfig, base: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if base is None:
            base = AutoModelForCausalLM.from_config(config.text_config)
        check_supported(base)
        self.base = base
        self._no_split_modules = base._no_split_modules
        self._install_mixers()
        route_attention(base)
        self.cache_key = config_key(config)
        self.post_init()
        self.generation_config = base.generation_config

    def _install_mixers(self) -> None:
        """Replace every layer's ``self_attn``: all or, if one cannot be, none."""
        layers: list[Any] = list(decoder_layers(self.base))
        mixers = [self._mixer_around(i, layer.self_attn) for i, layer in enumerate(layers)]
        for layer, mixed in zip(layers, mixers, strict=True):
            layer.self_attn = mixed

    def _mixer_around(self, layer: int, core: Any) -> MixedAttention:
        """What stands in the place of a decoder layer's attention, around it."""
        config = self.config
        name = config.layer_names[layer]
        shape = attention_shape(config.text_config)
        window = config.window_config
        rotary = layer_rotary(self.base, core, layer, window)
        own = own_window(config.text_config, layer)
        attention: AttentionMixer
        if name == LOCAL:
            local = WindowConfig(own or window.window)
            attention = WindowMixer(core, shape, rotary, local, fixed=True)
        elif name == "full":
            attention = FullMixer(core, shape, rotary)
        else:
            attention = WindowMixer(core, shape, rotary, window)
        kind = None if name == LOCAL else memory_kind(name)
        memory = None
        if kind is not None:
            memory = kind.build(
                shape.hidden_size, config.options_of(name), attention_weights(core, shape)
            )
        mixed = MixedAttention(layer, attention, memory, own)
        weight = core.o_proj.weight
        if not weight.is_meta:
            _place(mixed, weight.device, weight.dtype, self._keep_in_fp32_modules_strict)
        return mixed.train(core.training)

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: the base model and the mixers set their starting values when they are built."""

    # Shape of the model

    def mixers(self) -> list[MixedAttention]:
        """The mixed attention of every decoder layer."""
        layers: list[Any] = list(decoder_layers(self.base))
        return [layer.self_attn for layer in layers]

    def get_input_embeddings(self) -> nn.Module:
        return self.base.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.base.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.base.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.base.set_output_embeddings(value)

    def memory_parameters(self) -> dict[str, nn.Parameter]:
        """The slow weights: all that distillation trains, by the names of the adapter file."""
        return {
            f"layers.{mixed.layer}.{name}": parameter
            for mixed in self.mixers()
            for name, parameter in mixed.named_parameters()
            if not name.startswith("attention.")
        }

    def freeze_base(self) -> None:
        """Leave only the memory's slow weights trainable (paper section 3.2)."""
        self.requires_grad_(False)
        for parameter in self.memory_parameters().values():
            parameter.requires_grad_(True)

    def fingerprint(self) -> str:
        """A hash of this model's weights, base and memory."""
        return fingerprint(dict(self.named_parameters()))

    def init_states(
        self, rows: int, device: torch.device, window: WindowConfig | None = None
    ) -> list[LayerState]:
        """The state of every layer before the first token."""
        embeddings: Any = self.get_input_embeddings()
        dtype = embeddings.weight.dtype
        return [mixed.init_state(rows, dtype, device, window) for mixed in self.mixers()]

    # Forward

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: AllMemCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        full_attention: bool = False,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Read tokens and predict the next ones.

        Args:
            input_ids: [B, T]; or ``inputs_embeds`` [B, T, D].
            attention_mask: [B, T] or [B, slots read so far + T]; 0 marks padding, wherever it
                stands.
            position_ids: only to mark packed documents (positions that start again at 0, no mask
                and no cache); positions are otherwise counted from the tokens themselves.
            past_key_values: what was read before; ``AllMemCache(model.config)`` for a new text. It
                is updated, and returned if ``use_cache``.
            labels: [B, T] for the language-modelling loss of the base model.
            logits_to_keep: compute logits for the last so many slots only; 0 for all.
            full_attention: compute the original model's function instead, from the same weights:
                the teacher. Without a cache.

        Raises:
            AllMemError: on a cache of another model or batch size.
        """
        slots = input_ids if input_ids is not None else inputs_embeds
        if slots is None or (input_ids is not None and inputs_embeds is not None):
            raise AllMemError("give either input_ids or inputs_embeds")
        if slots.shape[1] == 0:
            raise AllMemError("there are no tokens to read: the input has the length 0")
        cache = past_key_values
        if cache is not None and not isinstance(cache, AllMemCache):
            raise AllMemError(
                f"past_key_values is a {type(cache).__name__}; a converted model needs an "
                "AllMemCache"
            )
        if full_attention and cache is not None:
            raise AllMemError("full_attention=True reads a whole text in one call, without a cache")
        if use_cache is None:
            use_cache = not self.training and not full_attention and labels is None
        if cache is None:
            cache = AllMemCache(self.config)
        kwargs.pop("return_dict", None)

        arguments = {
            "input_ids": input_ids,
            "inputs_embeds": inputs_embeds,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
        }
        if self._reads_in_blocks(slots, labels, logits_to_keep, full_attention, kwargs):
            output = self._read_blocks(arguments, cache, int(logits_to_keep), kwargs)
        else:
            output = self._read(
                **arguments,
                cache=cache,
                labels=labels,
                logits_to_keep=logits_to_keep,
                full_attention=full_attention,
                **kwargs,
            )
        if use_cache and not full_attention:
            # Not set to None otherwise: some versions of generate only look for the key.
            output["past_key_values"] = cache
        return output

    def hidden_states(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        full_attention: bool = False,
        observe: Observer | None = None,
    ) -> Tensor:
        """What the language-model head reads, [B, T, D], for a whole text in one call.

        For losses that never hold all logits at once. Arguments as for ``forward``.

        Args:
            observe: with ``full_attention``, called in every layer; to train one layer at a time.
        """
        cache = AllMemCache(self.config)
        layout = cache.open_call(self, input_ids, attention_mask, position_ids)
        assert cache.states is not None
        call = _Call(layout, cache.states, list(cache.states), full_attention, observe)
        output = self.base.base_model(
            input_ids=input_ids,
            position_ids=layout.grid_positions if full_attention else None,
            use_cache=False,
            allmem_call=call,
        )
        return output.last_hidden_state

    def _read(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: AllMemCache,
        labels: Tensor | None,
        logits_to_keep: int | Tensor,
        full_attention: bool,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """One call of the base model."""
        slots = input_ids if input_ids is not None else inputs_embeds
        assert slots is not None
        layout = cache.open_call(self, slots, attention_mask, position_ids)
        assert cache.states is not None
        call = _Call(layout, cache.states, list(cache.states), full_attention)
        output = self.base(
            input_ids=input_ids,
            inputs_embeds=inputs_embeds,
            position_ids=layout.grid_positions if full_attention else None,
            use_cache=False,
            labels=labels,
            logits_to_keep=logits_to_keep,
            allmem_call=call,
            **kwargs,
        )
        cache.close_call(layout, call.after, slots.shape[1])
        return output

    def _reads_in_blocks(
        self,
        slots: Tensor,
        labels: Tensor | None,
        logits_to_keep: int | Tensor,
        full_attention: bool,
        kwargs: dict[str, Any],
    ) -> bool:
        wants_layers = kwargs.get("output_hidden_states") or kwargs.get("output_attentions")
        return (
            slots.shape[1] > READ_BLOCK
            and not torch.is_grad_enabled()
            and labels is None
            and isinstance(logits_to_keep, int)
            and not full_attention
            and not wants_layers
        )

    def _read_blocks(
        self,
        arguments: dict[str, Tensor | None],
        cache: AllMemCache,
        logits_to_keep: int,
        kwargs: dict[str, Any],
    ) -> CausalLMOutputWithPast:
        """The same reading, block by block, with logits only where they are asked for."""
        mask = arguments.pop("attention_mask")
        position_ids = arguments.pop("position_ids")
        slots = next(x for x in arguments.values() if x is not None)
        length = slots.shape[1]
        if mask is None and position_ids is not None:
            packed = position_ids.expand(slots.shape[:2])
            if bool((packed[:, 1:] == 0).any()):
                # Packed documents are rows of their own: there is nothing to carry between blocks.
                return self._read(
                    **arguments,
                    attention_mask=None,
                    position_ids=position_ids,
                    cache=cache,
                    labels=None,
                    logits_to_keep=logits_to_keep,
                    full_attention=False,
                    **kwargs,
                )
        first_kept = 0 if logits_to_keep == 0 else length - logits_to_keep
        logits = []
        output: CausalLMOutputWithPast | None = None
        for first in range(0, length, READ_BLOCK):
            last = min(first + READ_BLOCK, length)
            block_mask = None if mask is None else mask[:, : mask.shape[1] - length + last]
            keep = last - max(first, min(first_kept, last))
            output = self._read(
                **{k: None if x is None else x[:, first:last] for k, x in arguments.items()},
                attention_mask=block_mask,
                position_ids=None,
                cache=cache,
                labels=None,
                # Logits of at least one slot, since 0 would mean all.
                logits_to_keep=max(keep, 1),
                full_attention=False,
                **kwargs,
            )
            if keep:
                logits.append(output["logits"])
        assert output is not None
        output["logits"] = torch.cat(logits, dim=1)
        return output

    # Generation

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """An AllMemCache where transformers would make a DynamicCache."""
        if generation_config.cache_implementation is not None:
            raise AllMemError(
                f"cache_implementation = {generation_config.cache_implementation!r} does not "
                "apply: a converted model keeps its state in an AllMemCache"
            )
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = AllMemCache(self.config)
        return None

    def generate(self, inputs: Tensor | None = None, **kwargs: Any) -> Any:
        """As in transformers. With ``past_key_values`` the prompt may be the whole text so far, or,
        as a convenience for long texts, only its new tokens (when it is no longer than what was
        read)."""
        cache = kwargs.get("past_key_values")
        prompt = inputs if inputs is not None else kwargs.get("input_ids")
        if isinstance(cache, AllMemCache) and cache.columns and prompt is not None:
            mask = kwargs.get("attention_mask")
            new = prompt.shape[1] <= cache.columns
            if new and (mask is None or mask.shape[1] == prompt.shape[1]):
                mask = torch.ones_like(prompt) if mask is None else mask
                before = mask.new_ones(mask.shape[0], cache.columns)
                kwargs["attention_mask"] = torch.cat([before, mask], dim=1)
        return super().generate(inputs, **kwargs)


def route_attention(base: PreTrainedModel) -> None:
    """Let the attention modules call ours: on a copy of the configuration, since the caller may
    build other models from the same object."""
    shared, own = base.config, copy.deepcopy(base.config)
    own._attn_implementation = ATTENTION_NAME
    for module in base.modules():
        if getattr(module, "config", None) is shared:
            module.config = own


def _place(
    mixed: MixedAttention, device: torch.device, dtype: torch.dtype, keep: tuple[str, ...]
) -> None:
    """Move a layer's new weights beside its old ones; those in ``keep`` stay in fp32 at least."""
    if mixed.memory is not None:
        module: Any
        for module in mixed.memory.modules():
            # Else the base model's `_init_weights` would draw our linear maps anew.
            module._is_hf_initialized = True
    for name, parameter in mixed.named_parameters():
        if name.startswith("attention."):
            continue
        precise = any(f"{part}." in name for part in keep)
        target = torch.promote_types(dtype, torch.float32) if precise else dtype
        parameter.data = parameter.data.to(device, target)


AutoModelForCausalLM.register(AllMemConfig, AllMemForCausalLM, exist_ok=True)
