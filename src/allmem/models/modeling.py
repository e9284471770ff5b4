"""AllMemForCausalLM: any decoder-only language model with a memory of constant size.

The base model stays as transformers wrote it; each decoder layer's ``self_attn`` is replaced by a
``MixedAttention`` that holds it and stands a memory beside it. State travels through the call as an
``AllMemCache``, never on modules.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from allmem.config import WindowConfig
from allmem.errors import AllMemError
from allmem.layout import Layout, document_starts
from allmem.mixers.layer import LayerState
from allmem.models import decoding
from allmem.models.cache import AllMemCache, config_key
from allmem.models.compiled import compiling
from allmem.models.configuration import AllMemConfig
from allmem.models.cpu_products import fast_products
from allmem.models.fingerprint import fingerprint
from allmem.models.generation import MemoryGeneration
from allmem.models.layer import Call, MixedAttention, Observer, mixer_around, route_attention
from allmem.models.structure import check_supported, decoder_layers

__all__ = ["AllMemForCausalLM"]

READ_BLOCK = 2048
"""Without gradients, longer inputs are read in blocks of this many slots, so that activations do
not grow with the input."""


class AllMemForCausalLM(MemoryGeneration, PreTrainedModel, GenerationMixin):
    """A converted language model, made by ``allmem.convert`` or ``from_pretrained``.

    Args:
        config: of the converted model.
        base: the pretrained model to convert in place; ``None`` builds an untrained one.
        seed: of the memories' random starting values; the same seed gives the same model.
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

    def __init__(
        self, config: AllMemConfig, base: PreTrainedModel | None = None, seed: int = 0
    ) -> None:
        super().__init__(config)
        if base is None:
            base = AutoModelForCausalLM.from_config(config.text_config)
        check_supported(base)
        self.base = base
        self._no_split_modules = base._no_split_modules
        self._install_mixers(seed)
        route_attention(base)
        fast_products(base, base.get_output_embeddings())
        self.cache_key = config_key(config)
        self.post_init()
        self.generation_config = base.generation_config

    def _install_mixers(self, seed: int) -> None:
        """Replace every layer's ``self_attn``: all or, if one cannot be, none."""
        layers: list[Any] = list(decoder_layers(self.base))
        mixers = [mixer_around(self.base, self.config, i, seed) for i in range(len(layers))]
        precise = {name for m in mixers if m.memory is not None for name in m.memory.keep_fp32}
        self._keep_in_fp32_modules_strict = precise
        for layer, mixed in zip(layers, mixers, strict=True):
            layer.self_attn = mixed

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
            for name, parameter in mixed.slow_parameters().items()
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
        self,
        rows: int,
        device: torch.device,
        window: WindowConfig | None = None,
        chunk: int | None = None,
    ) -> list[LayerState]:
        """The state of every layer before the first token; ``window`` and ``chunk``, if given, are
        what it will be read with."""
        embeddings: Any = self.get_input_embeddings()
        dtype = embeddings.weight.dtype
        return [mixed.init_state(rows, dtype, device, window, chunk) for mixed in self.mixers()]

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
        final = cache is None and not use_cache
        if cache is None:
            cache = AllMemCache(self.config)
        kwargs.pop("return_dict", None)

        arguments = {
            "input_ids": input_ids,
            "inputs_embeds": inputs_embeds,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
        }
        packed = (
            attention_mask is None
            and position_ids is not None
            and document_starts(position_ids) is not None
        )
        if self._reads_in_blocks(slots, labels, logits_to_keep, full_attention, packed, kwargs):
            output = self._read_blocks(arguments, cache, int(logits_to_keep), kwargs)
        else:
            output = self._read(
                **arguments,
                cache=cache,
                labels=labels,
                logits_to_keep=logits_to_keep,
                full_attention=full_attention,
                final=final,
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
        cache: AllMemCache | None = None,
    ) -> Tensor:
        """What the language-model head reads, [B, T, D], for all tokens in one call.

        For losses that never hold all logits at once. Arguments as for ``forward``.

        Args:
            observe: with ``full_attention``, called in every layer; to train one layer at a time.
            cache: what was read before, and with which window and chunk to read; it is updated.
        """
        final = cache is None
        cache = AllMemCache(self.config) if cache is None else cache
        layout = cache.open_call(self, input_ids, attention_mask, position_ids, final)
        call = Call(layout, cache.states, full_attention, observe)
        output = self.base.base_model(
            input_ids=input_ids,
            position_ids=layout.grid_positions if full_attention else None,
            use_cache=False,
            allmem_call=call,
        )
        if not full_attention:
            cache.close_call(layout, call.take_states(), input_ids)
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
        final: bool,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """One call of the base model; the last one, if ``final``, that sees its cache."""
        slots = input_ids if input_ids is not None else inputs_embeds
        assert slots is not None
        layout = cache.open_call(self, slots, attention_mask, position_ids, final)
        how: frozenset[str] = frozenset()
        if cache.states is not None and not full_attention:
            how = decoding.chosen(self, layout)
        if "graph" in how and input_ids is not None and labels is None and not any(kwargs.values()):
            return self._replay(input_ids, cache, layout, how)
        if how:
            assert cache.states is not None
            call = decoding.one_token_call(self, layout, cache.states, how)
        else:
            call = Call(layout, cache.states, full_attention)
        with compiling() if how else nullcontext():
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
        if not full_attention:
            cache.close_call(layout, call.take_states(), slots)
        return output

    def _replay(
        self, input_ids: Tensor, cache: AllMemCache, layout: Layout, how: frozenset[str]
    ) -> CausalLMOutputWithPast:
        """One token of every sequence by a graph, with the cache's states at its addresses."""
        assert cache.states is not None
        decoder = cache.decoder
        if decoder is None or decoder.how != how or not decoder.adopt(cache.states):
            decoder = cache.decoder = decoding.GraphedDecoder(self, cache.states, layout, how)
        with compiling():
            logits = decoder.step(input_ids, layout)
        cache.close_call(layout, decoder.states, input_ids)
        return CausalLMOutputWithPast(logits=logits)

    def _reads_in_blocks(
        self,
        slots: Tensor,
        labels: Tensor | None,
        logits_to_keep: int | Tensor,
        full_attention: bool,
        packed: bool,
        kwargs: dict[str, Any],
    ) -> bool:
        """Whether a call may be cut without anyone noticing but the memory that it needs."""
        return not (
            slots.shape[1] <= READ_BLOCK
            or torch.is_grad_enabled()
            or full_attention
            or labels is not None
            or not isinstance(logits_to_keep, int)
            or packed
            or kwargs.get("output_hidden_states")
            or kwargs.get("output_attentions")
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
        del arguments["position_ids"]
        slots = next(x for x in arguments.values() if x is not None)
        length = slots.shape[1]
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
                final=False,
                **kwargs,
            )
            if keep:
                logits.append(output["logits"])
        assert output is not None
        output["logits"] = torch.cat(logits, dim=1)
        return output


AutoModelForCausalLM.register(AllMemConfig, AllMemForCausalLM, exist_ok=True)
