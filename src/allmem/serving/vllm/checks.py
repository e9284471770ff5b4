"""What vLLM is set to before a converted model starts, and what is refused then.

Done in the process that makes vLLM's configuration, so that an error reaches the user as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.model_executor.models.config import MambaModelConfig, VerifyAndUpdateConfig

from allmem.errors import AllMemError
from allmem.models.configuration import AllMemConfig
from allmem.models.modeling import AllMemForCausalLM
from allmem.serving.vllm.config import reading_of

__all__ = ["AllMemSettings"]

ONE_DEVICE = "a copy of the model has one device; for more of them serve more copies"
SNAPSHOT_TOKENS = 512
"""Tokens of a block of the prefix cache, unless the user says how many: a block is a whole state,
megabytes, where vLLM's own size of 16 tokens means a few keys and values."""
NO_RETURN = "a memory cannot forget the tokens that turn out to be wrong; leave it out"
MERGE = "merge the LoRA weights into the base model before it is converted"


class AllMemSettings(VerifyAndUpdateConfig):
    """vLLM's hook for what a model needs."""

    @classmethod
    def verify_and_update_config(cls, vllm_config: Any) -> None:
        """As in vLLM.

        Raises:
            AllMemError: on a model or a setting that the plugin does not serve.
        """
        config: AllMemConfig = vllm_config.model_config.hf_config
        _refuse_settings(vllm_config)
        _refuse_growing_layers(config)
        reading_of(config)
        # Which chunks end in a step is decided on the CPU, so a step is neither compiled as a whole
        # nor replayed as a CUDA graph.
        vllm_config.model_config.enforce_eager = True
        cache = vllm_config.cache_config
        if cache.enable_prefix_caching and not cache.user_specified_block_size:
            cache.block_size = SNAPSHOT_TOKENS
        MambaModelConfig.verify_and_update_config(vllm_config)


def _refuse_settings(vllm_config: Any) -> None:
    parallel, model = vllm_config.parallel_config, vllm_config.model_config
    leave_out = "it was not tried with one; leave it out"
    for name, value, served, advice in (
        ("tensor_parallel_size", parallel.tensor_parallel_size, 1, ONE_DEVICE),
        ("pipeline_parallel_size", parallel.pipeline_parallel_size, 1, ONE_DEVICE),
        ("decode_context_parallel_size", parallel.decode_context_parallel_size, 1, ONE_DEVICE),
        ("prefill_context_parallel_size", parallel.prefill_context_parallel_size, 1, ONE_DEVICE),
        ("enable_dbo", parallel.enable_dbo, False, leave_out),
        ("speculative_config", vllm_config.speculative_config, None, NO_RETURN),
        ("kv_transfer_config", vllm_config.kv_transfer_config, None, leave_out),
        ("enable_lora", vllm_config.lora_config is not None, False, MERGE),
        ("quantization", model.quantization, None, "save the model in bfloat16 or float32"),
    ):
        if value != served:
            raise AllMemError(f"{name} = {value} does not go with a converted model: {advice}")
    if vllm_config.load_config.load_format == "dummy":
        raise AllMemError("load_format = dummy: a converted model needs its weights; leave it out")


def _refuse_growing_layers(config: AllMemConfig) -> None:
    with torch.device("meta"):
        mixers = AllMemForCausalLM(config).mixers()
    growing = [m.layer for m in mixers if not m.capabilities.constant_state]
    if growing:
        names = sorted({config.layer_names[layer] for layer in growing})
        raise AllMemError(
            f"layers {growing} ({', '.join(names)}) have a state that grows with the text, and a "
            "sequence's state has one fixed size here; convert with other layers there, or use "
            "allmem's own server"
        )
