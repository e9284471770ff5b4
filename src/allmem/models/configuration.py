"""AllMemConfig: what makes a converted checkpoint, around the configuration of its base model.

transformers imports this module in the midst of its own import (``allmem._registration``), so the
mixers, which need more of it, are only imported once a configuration is made.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from allmem.config import WindowConfig, check_chunk_fits_window
from allmem.errors import AllMemError, unknown_name

__all__ = ["LOCAL", "AllMemConfig"]

BASE_SIZES = (
    "head_dim",
    "hidden_size",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "vocab_size",
)
"""Attributes that a converted model shares with its base. Not the trained length: it no longer
limits what the model can read."""
LOCAL = "local"
"""A layer that was local before conversion and keeps its own window: see
``AllMemConfig.layers``."""


class AllMemConfig(PreTrainedConfig):
    """Configuration of a converted model.

    Args:
        text_config: the base model's configuration (the name that transformers looks for).
        window, sinks: W and S of the converted layers.
        layers: one mixer name per decoder layer: ``allmem`` or another memory, ``window``,
            ``full``, or ``local`` for a layer that was local before, with a window no larger than
            W: it keeps its own window, gets no sinks and no memory, since its attention never saw
            further.
        mixer_options: options by mixer name; ``{"allmem": MemoryConfig(...).to_dict()}``.
        base_source: where the base came from, for information.

    Raises:
        AllMemError: on values that do not fit together.
    """

    model_type = "allmem"
    sub_configs: ClassVar[dict[str, Any]] = {"text_config": AutoConfig}

    text_config: dict[str, Any] | PreTrainedConfig | None = None
    window: int = 4096
    sinks: int = 128
    layers: list[str] | None = None
    mixer_options: dict[str, dict[str, Any]] | None = None
    base_source: str | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        from allmem.mixers.registry import expand_pattern, mixer_kind

        if isinstance(self.text_config, dict):
            values = dict(self.text_config)
            kind = values.pop("model_type", None)
            if kind not in CONFIG_MAPPING:
                raise AllMemError(unknown_name("base model type", str(kind), CONFIG_MAPPING.keys()))
            self.text_config = CONFIG_MAPPING[kind](**values)
        elif self.text_config is None:
            self.text_config = CONFIG_MAPPING["qwen3"]()
        base: PreTrainedConfig = self.text_config
        self.tie_word_embeddings = bool(base.tie_word_embeddings)
        super().__post_init__(**kwargs)
        for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if getattr(self, token, None) is None:
                setattr(self, token, getattr(base, token, None))
        if self.layers is None:
            self.layers = expand_pattern("allmem", base.num_hidden_layers)
        if len(self.layers) != base.num_hidden_layers:
            raise AllMemError(
                f"AllMemConfig: {len(self.layers)} layers are named, but the base model has "
                f"{base.num_hidden_layers}"
            )
        self.mixer_options = dict(self.mixer_options or {})
        window = self.window_config
        for name in set(self.layers) - {LOCAL}:
            kind = mixer_kind(name)
            if kind is None:
                continue
            options = kind.options(self.mixer_options.get(name, {}))
            self.mixer_options[name] = options.to_dict()
            if getattr(options, "chunk", None) is not None:
                check_chunk_fits_window(options.chunk, window.window)

    def __getattr__(self, name: str) -> Any:
        """The base model's sizes, for tools that look for them here."""
        if name in BASE_SIZES and "text_config" in self.__dict__:
            return getattr(self.text_config, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def layer_names(self) -> list[str]:
        """``layers``, which are always known once the configuration is made."""
        assert self.layers is not None
        return self.layers

    @property
    def window_config(self) -> WindowConfig:
        """W and S, validated."""
        return WindowConfig(self.window, self.sinks)

    @property
    def chunk(self) -> int | None:
        """C, the largest if memories of several kinds have one; ``None`` if none has."""
        used = [(self.mixer_options or {}).get(name, {}) for name in set(self.layer_names)]
        return max((o["chunk"] for o in used if o.get("chunk") is not None), default=None)

    def options_of(self, mixer: str) -> Any:
        """The validated options of a mixer by its name; ``None`` for one that has none."""
        from allmem.mixers.registry import mixer_kind

        kind = None if mixer == LOCAL else mixer_kind(mixer)
        return None if kind is None else kind.options((self.mixer_options or {})[mixer])

    def essence(self) -> dict[str, Any]:
        """What decides the meaning of a state or an adapter: no paths, versions or dtypes."""
        base: PreTrainedConfig = copy.deepcopy(self.text_config)
        values = base.to_dict()
        for key in (
            "_name_or_path",
            "transformers_version",
            "dtype",
            "torch_dtype",
            "architectures",
        ):
            values.pop(key, None)
        return {
            "base": values,
            "window": self.window,
            "sinks": self.sinks,
            "layers": self.layers,
            "mixer_options": self.mixer_options,
        }


AutoConfig.register(AllMemConfig.model_type, AllMemConfig, exist_ok=True)
