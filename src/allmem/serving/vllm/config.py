"""Which model vLLM is to serve, and how it is to be read.

A converted folder says so itself; its configuration reaches vLLM through transformers' Auto
classes. A base model does not: ``--config-format allmem`` puts an adapter's layout around it. Both
are one ``AllMemConfig`` from there on. The wishes below come with vLLM's ``--hf-overrides``, which
sets them as attributes of that configuration.

    allmem_adapter       file of trained memories; with --config-format allmem
    allmem_other_base    load it on weights that it was not trained on
    allmem_window, allmem_sinks, allmem_chunk
                         read with these in place of the configured ones
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from vllm.transformers_utils.config import HFConfigParser
from vllm.transformers_utils.model_arch_config_convertor import ModelArchConfigConvertorBase

from allmem.config import WindowConfig
from allmem.errors import AllMemError
from allmem.files import read_tensors
from allmem.models.adapter import find_adapter
from allmem.models.cache import AllMemCache
from allmem.models.configuration import AllMemConfig
from allmem.serving.vllm import ARCHITECTURE, CONFIG_FORMAT

__all__ = ["AllMemConfigParser", "AllMemSizes", "adapter_of", "reading_of"]

NO_LIMIT = 2**31 - 1
"""Tokens of a request, as far as the model is concerned."""


class AllMemConfigParser(HFConfigParser):
    """The configuration of a base model with the layout of an adapter around it."""

    def parse(
        self, model: str | Path, trust_remote_code: bool, *args: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], PreTrainedConfig]:
        """As in vLLM.

        Raises:
            AllMemError: if no adapter is named, or the model is converted already.
        """
        overrides = kwargs.get("hf_overrides")
        adapter = overrides.get("allmem_adapter") if isinstance(overrides, dict) else None
        if adapter is None:
            raise AllMemError(
                f"--config-format {CONFIG_FORMAT} puts an adapter on a base model, and none is "
                """named; add --hf-overrides '{"allmem_adapter": "FILE"}', or leave it out for a """
                "converted folder"
            )
        values, base = super().parse(model, trust_remote_code, *args, **kwargs)
        if isinstance(base, AllMemConfig):
            raise AllMemError(
                f"{model} is converted already: leave out --config-format {CONFIG_FORMAT} and "
                f"allmem_adapter = {adapter}, or name the base model"
            )
        _, header = read_tensors(find_adapter(adapter), "adapter")
        config = AllMemConfig(
            text_config=base,
            window=header["window"],
            sinks=header["sinks"],
            layers=header["layers"],
            mixer_options=header["mixer_options"],
            base_source=str(model),
            architectures=[ARCHITECTURE],
            dtype=base.dtype,
        )
        return values, config


class AllMemSizes(ModelArchConfigConvertorBase):
    """What vLLM asks a configuration of type ``allmem``."""

    def derive_max_model_len_and_key(self) -> tuple[float, str | None]:
        """As long as the base model was trained for by default; what is asked for may be longer,
        since positions in the window never are."""
        trained: tuple[float, str | None] = super().derive_max_model_len_and_key()
        # Where vLLM looks for how long a request may be at most.
        self.hf_text_config.model_max_length = NO_LIMIT
        return trained


def adapter_of(config: AllMemConfig) -> tuple[str | None, bool]:
    """The adapter's file, if the weights are a base model's, and whether it may be another one."""
    return getattr(config, "allmem_adapter", None), bool(
        getattr(config, "allmem_other_base", False)
    )


def reading_of(config: AllMemConfig) -> tuple[WindowConfig | None, int | None]:
    """Window and chunk to read with in place of the configured ones.

    Raises:
        AllMemError: if they do not fit together.
    """
    own = config.window_config
    window = getattr(config, "allmem_window", None)
    sinks = getattr(config, "allmem_sinks", None)
    chunk = getattr(config, "allmem_chunk", None)
    asked = None
    if window is not None or sinks is not None:
        asked = WindowConfig(
            own.window if window is None else window, own.sinks if sinks is None else sinks
        )
    # Which sizes fit together is the cache's to say.
    AllMemCache(config, asked, chunk)
    return asked, chunk
