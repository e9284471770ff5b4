"""What ``generate`` does differently for a model with a memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin

from allmem.errors import AllMemError
from allmem.models.cache import AllMemCache

__all__ = ["MemoryGeneration"]


class MemoryGeneration(GenerationMixin):
    """transformers' generation, over an ``AllMemCache``."""

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
            config: Any = self.config
            model_kwargs["past_key_values"] = AllMemCache(config)
        return None

    def generate(self, inputs: Tensor | None = None, **kwargs: Any) -> Any:
        """As in transformers. With ``past_key_values`` the prompt is either the whole text so far
        and more, which is known by its first tokens, or else the new tokens alone."""
        cache = kwargs.get("past_key_values")
        prompt = inputs if inputs is not None else kwargs.get("input_ids")
        if isinstance(cache, AllMemCache) and cache.columns and prompt is not None:
            mask = kwargs.get("attention_mask")
            if not cache.begins(prompt) and (mask is None or mask.shape == prompt.shape):
                mask = torch.ones_like(prompt) if mask is None else mask
                before = mask.new_ones(mask.shape[0], cache.columns)
                kwargs["attention_mask"] = torch.cat([before, mask], dim=1)
        return super().generate(inputs, **kwargs)
