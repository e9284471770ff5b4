"""``allmem.convert``: one converter for every decoder that follows transformers' conventions."""

from __future__ import annotations

import copy
import dataclasses
import os
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from allmem.config import MemoryConfig, WindowConfig, check_chunk_fits_window
from allmem.errors import AllMemError
from allmem.mixers.registry import expand_pattern, memory_kind
from allmem.models.configuration import LOCAL, AllMemConfig
from allmem.models.modeling import AllMemForCausalLM
from allmem.models.sources import load_base
from allmem.models.structure import check_supported, own_window

__all__ = ["convert", "default_sizes"]

CHECK_TOKENS = 8
CHECK_TOLERANCE = 5e-2
"""Largest relative difference of logits between a model and its conversion within the window:
rounding in bf16 stays well below, a mistaken convention far above."""


def default_sizes(config: PreTrainedConfig) -> tuple[int, int, int]:
    """Window, sinks and chunk where the user names none: for models trained at 32k and more 4096
    and 2048 as in the paper (section 5.3) and 128 sinks, below the same proportions of an eighth
    of the trained length."""
    trained = getattr(config, "max_position_embeddings", None) or 32768
    window = 4096 if trained >= 32768 else max(64, trained // 8)
    return window, default_sinks(window), window // 2


def default_sinks(window: int) -> int:
    """A 32nd of the window as in the paper, but at least a few: without sinks perplexity nearly
    doubles."""
    return min(max(window // 32, 4), window // 4)


def convert(
    model: PreTrainedModel | str | os.PathLike[str],
    *,
    window: int | None = None,
    sinks: int | None = None,
    chunk: int | None = None,
    mixers: str | Sequence[str] = "allmem",
    keep_full: Iterable[int] = (),
    memory: MemoryConfig | dict[str, Any] | None = None,
    mixer_options: dict[str, dict[str, Any]] | None = None,
    seed: int = 0,
    check: bool = True,
    **load_options: Any,
) -> AllMemForCausalLM:
    """Give a pretrained decoder-only language model a memory of constant size.

    The conversion is in place: the model's attention modules become part of the result. All its
    weights are kept, alpha starts at zero, so the result first computes exactly what the model with
    a window and sinks computes; distillation then trains the memory.

    Args:
        model: a loaded model, a hub name, a local folder or a GGUF file.
        window: W, keys seen behind a token. Default: see ``default_sizes``.
        sinks: S, first tokens that stay visible.
        chunk: C, tokens written to memory in one step.
        mixers: what stands in each layer, ``"allmem"``, ``"allmem*3,full"``, or a list; see
            ``allmem.mixers.expand_pattern``. A layer that was local already, with a window of at
            most W, keeps its own window and gets neither sinks nor memory.
        keep_full: layers, counted from 0, that keep their full attention.
        memory: options of the ``allmem`` memory; ``chunk`` takes the place of a ``MemoryConfig``'s.
        mixer_options: options of other mixers, by name.
        seed: of the memories' random starting values.
        check: compare the logits of a few tokens before and after.
        load_options: passed to ``from_pretrained`` (``dtype``, ``device_map``, ``revision``).

    Raises:
        AllMemError: for a model that cannot be converted (says why) and for sizes that do not fit.
    """
    if isinstance(model, AllMemForCausalLM):
        raise AllMemError("this model is converted already")
    if isinstance(model, PreTrainedModel):
        if load_options:
            raise AllMemError(
                f"{sorted(load_options)} apply to loading; the model is loaded already"
            )
        base, source = model, model.config._name_or_path or None
    else:
        base, source = load_base(model, **load_options), os.fspath(model)
    check_supported(base)

    base_config = base.config
    default_window, _, default_chunk = default_sizes(base_config)
    window = default_window if window is None else window
    sinks = default_sinks(window) if sinks is None else sinks
    windows = WindowConfig(window, sinks)
    _warn_beyond_training(base_config, windows)

    layers = expand_pattern(mixers, base_config.num_hidden_layers)
    for i in keep_full:
        if not 0 <= i < len(layers):
            raise AllMemError(f"keep_full: there is no layer {i}; the model has {len(layers)}")
        layers[i] = "full"
    layers = [
        LOCAL if (own_window(base_config, i) or window + 1) <= window else name
        for i, name in enumerate(layers)
    ]
    if set(layers) == {LOCAL}:
        raise AllMemError(
            f"every layer of {type(base).__name__} is local already, with a window of at most "
            f"{own_window(base_config, 0)}; choose a window below that for a memory to matter"
        )
    options = {name: dict(values) for name, values in (mixer_options or {}).items()}
    for name in options:
        memory_kind(name)
        if name == "allmem" or name not in layers:
            remedy = "memory=" if name == "allmem" else "a layer that is one"
            raise AllMemError(f"mixer_options: {name!r} needs {remedy}; the layers are {layers}")
    chunked = []
    for name in sorted(set(layers)):
        if name == "allmem":
            given: dict[str, Any] | MemoryConfig = memory if memory is not None else {}
        else:
            given = options.get(name, {})
        if _has_chunk(name, given):
            chunked.append(name)
            options[name] = _with_chunk(name, given, chunk, window, default_chunk)
    if (memory is not None and "allmem" not in layers) or (chunk is not None and not chunked):
        raise AllMemError(
            "memory options or a chunk were given, but no layer has a memory that takes them: "
            f"{sorted(set(layers))}"
        )

    config = AllMemConfig(
        # A copy: transformers writes run-time settings into nested configurations.
        text_config=copy.deepcopy(base_config),
        window=window,
        sinks=sinks,
        layers=layers,
        mixer_options=options,
        base_source=source,
    )
    probe = _probe(base_config, windows) if check else None
    before = _logits(base, probe) if probe is not None else None
    converted = AllMemForCausalLM(config, base, seed)
    converted.train(base.training)
    if before is not None and probe is not None:
        _check_same(base, before, _logits(converted, probe))
    return converted


def _has_chunk(name: str, given: MemoryConfig | dict[str, Any]) -> bool:
    """Whether a layer's memory writes in chunks that the window has to cover."""
    kind = None if name == LOCAL else memory_kind(name)
    if kind is None or not any(f.name == "chunk" for f in dataclasses.fields(kind.config)):
        return False
    # Several memories in one layer have a chunk only if one of them has.
    return isinstance(given, MemoryConfig) or kind.options(given).chunk is not None


def _with_chunk(
    name: str,
    given: MemoryConfig | dict[str, Any],
    chunk: int | None,
    window: int,
    default_chunk: int,
) -> dict[str, Any]:
    """The options of a memory that writes in chunks. A chunk of its own gives way to no other, but
    for a ``MemoryConfig``'s, which always has one."""
    kind = memory_kind(name)
    assert kind is not None
    if isinstance(given, MemoryConfig):
        values = given.to_dict()
        if chunk is not None:
            values["chunk"] = chunk
    else:
        values = {**kind.preset, **given}
        named = (values.get("chunk"), _chunk_of_parts(given), chunk)
        inner = values["chunk"] = next((c for c in named if c is not None), None)
        if inner is None:
            inner = values["chunk"] = min(default_chunk, max(window // 2, 1))
        if chunk is not None and inner != chunk:
            where = "memory" if name == "allmem" else f"mixer_options[{name!r}]"
            raise AllMemError(
                f"chunk = {chunk}, but {where} has chunk = {inner}; give one of the two"
            )
    options = kind.options(values)
    check_chunk_fits_window(options.chunk, window)
    values = options.to_dict()
    assert isinstance(values, dict)
    return values


def _chunk_of_parts(given: dict[str, Any]) -> int | None:
    """The largest chunk that a user named for one of several memories in a layer."""
    chunks = [(part.get("options") or {}).get("chunk") for part in given.get("parts", ())]
    return max((chunk for chunk in chunks if chunk is not None), default=None)


def _warn_beyond_training(config: PreTrainedConfig, window: WindowConfig) -> None:
    trained = getattr(config, "max_position_embeddings", None)
    if trained and window.window + window.sinks > trained:
        warnings.warn(
            f"window + sinks = {window.window + window.sinks} is more than the {trained} positions "
            "that the model was trained for; distances it never saw will be in use",
            stacklevel=3,
        )


def _probe(config: PreTrainedConfig, window: WindowConfig) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    length = min(CHECK_TOKENS, window.window)
    return torch.randint(0, config.vocab_size, (1, length), generator=generator)


@torch.no_grad()
def _logits(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor | None:
    embeddings = model.get_input_embeddings().weight
    if embeddings.is_meta:
        return None
    training = model.training
    model.eval()
    logits = model(input_ids=ids.to(embeddings.device), use_cache=False).logits.float()
    model.train(training)
    return logits


def _check_same(base: PreTrainedModel, before: torch.Tensor, after: torch.Tensor | None) -> None:
    assert after is not None
    difference = float((after - before).norm() / before.norm().clamp_min(1e-30))
    if not difference <= CHECK_TOLERANCE:
        raise AllMemError(
            f"cannot convert {type(base).__name__}: within the window the converted model's logits "
            f"differ from the original's by {difference:.1%}, so its attention does something that "
            "the converter does not know; please report the architecture"
        )
