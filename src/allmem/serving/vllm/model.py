"""The model that vLLM runs: a converted model as it is everywhere else, in vLLM's steps.

Its layers read with the same code as in ``generate`` (``allmem.models.flat``), with their states in
vLLM's slots. Weights are transformers' to load: checkpoints do not name them as modules do.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.modeling_outputs import MoeModelOutputWithPast
from vllm.forward_context import get_forward_context
from vllm.logger import init_logger
from vllm.model_executor.layers.mamba.mamba_utils import get_temporal_copy_spec
from vllm.model_executor.models.interfaces import (
    HasInnerState,
    IsAttentionFree,
    SupportsMambaPrefixCaching,
)

from allmem.errors import AllMemError
from allmem.layout import Layout
from allmem.mixers.layer import LayerMixer, LayerState
from allmem.models import decoding
from allmem.models.adapter import load_adapter
from allmem.models.compiled import compiling
from allmem.models.configuration import AllMemConfig
from allmem.models.flat import FlatCall, Group
from allmem.models.modeling import AllMemForCausalLM as ConvertedModel
from allmem.serving.vllm.config import adapter_of, reading_of
from allmem.serving.vllm.slots import StateSlots
from allmem.serving.vllm.step import Step

__all__ = ["AllMemForCausalLM"]

logger = init_logger(f"vllm.{__name__}")

LAYER = "states.0"
"""The one layer with a cache that vLLM sees. It looks for a number in the name."""


class AllMemForCausalLM(nn.Module, HasInnerState, IsAttentionFree, SupportsMambaPrefixCaching):
    """A converted model for vLLM, which calls ``load_weights`` before anything else."""

    model: ConvertedModel
    slots: StateSlots

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()
        self.config: AllMemConfig = vllm_config.model_config.hf_config
        self.dtype: torch.dtype = vllm_config.model_config.dtype
        self.device: torch.device = vllm_config.device_config.device
        self.window, self.chunk = reading_of(self.config)
        self._layers: dict[str, Any] = vllm_config.compilation_config.static_forward_context

    # Weights

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Build the model from a checkpoint's tensors.

        Raises:
            AllMemError: if tensors are missing, or an adapter belongs to another base.
        """
        adapter, other_base = adapter_of(self.config)
        if adapter is None:
            model = _loaded(ConvertedModel, self.config, weights, self.dtype)
        else:
            kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(self.config.text_config)]
            base = _loaded(kind, self.config.text_config, weights, self.dtype)
            model = load_adapter(base, adapter, other_base=other_base)
        self.model = model.to(self.device).eval().requires_grad_(False)
        self._head = _head_alone(self.model.base)
        self.slots = StateSlots(self._beginning())
        self._layers[LAYER] = self.slots
        self._compiled = _periods_if_compiled(
            self.model, Layout.dense(0, 1, 1, self.device).read_with(self.window, self.chunk)
        )
        logger.info("The state of a sequence takes %.2f MiB", self.slots.nbytes / 2**20)
        return {name for name, _ in self.named_parameters()}

    def _beginning(self) -> list[LayerState]:
        return self.model.init_states(1, self.device, self.window, self.chunk)

    def get_mamba_state_copy_funcs(self, mamba_types: set[Any]) -> dict[Any, Any]:
        """How vLLM's prefix cache copies a slot: whole."""
        copies = (get_temporal_copy_spec,) * len(self.slots.get_state_shape())
        return dict.fromkeys(mamba_types, copies)

    # Steps

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        embedded: Tensor = self.model.get_input_embeddings()(input_ids)
        return embedded

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """What the head reads, [K, D], for the tokens of a step, [K]; zeros where a slot holds
        none."""
        ids = None if input_ids is None or inputs_embeds is not None else input_ids[None]
        with nullcontext() if self._compiled is None else compiling():
            output = self.model.base.base_model(
                input_ids=ids,
                inputs_embeds=None if inputs_embeds is None else inputs_embeds[None],
                use_cache=False,
                allmem_call=self._call(len(positions)),
            )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def _call(self, tokens: int) -> FlatCall:
        metadata: Any = get_forward_context().attn_metadata
        if metadata is None:
            # vLLM measures how much memory a step takes, before there are any slots.
            layout = Layout.dense(0, 1, tokens, self.device).read_with(self.window, self.chunk)
            alone = Group(torch.tensor([0]), layout, torch.tensor([0]))
            return FlatCall([alone], _Passing(self._beginning()))
        step: Step = metadata[LAYER]
        for slot in step.beginning:
            self.slots.begin(slot)
        groups = step.groups(self.device, self.window, self.chunk, self._compiled)
        return FlatCall(groups, self.slots)

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        """Logits [P, V] of hidden states [P, D], with all that the base model does to them."""
        logits: Tensor = self._head(inputs_embeds=hidden_states[None], use_cache=False).logits[0]
        return logits


class _Passing:
    """States that nobody continues."""

    def __init__(self, states: list[LayerState]) -> None:
        self.states = states

    def take(self, mixed: LayerMixer, layer: int, group: Group) -> LayerState:
        return self.states[layer]

    def put(self, mixed: LayerMixer, layer: int, group: Group, state: LayerState) -> None:
        pass


class _Given(nn.Module):
    """In the place of a language model's decoder: its result, from outside."""

    def forward(self, inputs_embeds: Tensor, **_: Any) -> MoeModelOutputWithPast:
        return MoeModelOutputWithPast(last_hidden_state=inputs_embeds)


@torch.no_grad()
def _periods_if_compiled(model: ConvertedModel, layout: Layout) -> frozenset[int] | None:
    """The periods of all layers, if they are to read single tokens in compiled code and can.

    Args:
        layout: of a single token.
    """
    if "graph" in decoding.asked_for():
        raise AllMemError(
            f"decoding = 'graph' ({decoding.VARIABLE}) is not for vLLM, whose steps are of another "
            "shape each time; choose 'compiled' or 'eager'"
        )
    if not decoding.chosen(model, layout):
        return None
    periods = [mixed.periods(layout) for mixed in model.mixers()]
    return frozenset().union(*(found for found in periods if found is not None))


def _head_alone(base: Any) -> Any:
    """A causal language model, on the same weights, that is given what its head reads."""
    head = copy.copy(base)
    head._modules = {**base._modules, base.base_model_prefix: _Given()}
    return head


def _loaded(
    kind: Any, config: Any, weights: Iterable[tuple[str, Tensor]], dtype: torch.dtype
) -> Any:
    model, told = kind.from_pretrained(
        None, config=config, state_dict=dict(weights), dtype=dtype, output_loading_info=True
    )
    for problem in ("missing_keys", "mismatched_keys"):
        if told[problem]:
            example = min(map(str, told[problem]))
            raise AllMemError(
                f"the checkpoint does not fit its configuration: {len(told[problem])} "
                f"{problem.replace('_', ' ')}, for example {example}; save the model again"
            )
    return model
