"""The adapter: the slow weights of all memories alone, in one file, for one base model."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from allmem.errors import AllMemError
from allmem.files import read_tensors, write_tensors
from allmem.mixers.registry import memory_kind
from allmem.models.configuration import AllMemConfig
from allmem.models.conversion import convert
from allmem.models.fingerprint import fingerprint
from allmem.models.modeling import AllMemForCausalLM
from allmem.sharded import full_tensor, like

__all__ = [
    "ADAPTER",
    "adapter_header",
    "adapter_note",
    "find_adapter",
    "load_adapter",
    "load_weights",
    "save_adapter",
    "shipped_adapters",
    "trained_tokens",
]

ADAPTER = "adapter.safetensors"
"""The file's name in the folder of a run or of an export."""


def shipped_adapters() -> list[str]:
    """The adapters that come with the package, by the names of their base models."""
    # Its files are on disk: safetensors are read by mapping them.
    folder = Path(str(resources.files("allmem"))) / "resources" / "adapters"
    return sorted(path.parent.name for path in folder.glob(f"*/{ADAPTER}"))


def find_adapter(name: str | os.PathLike[str]) -> Path:
    """The file that stands behind a name: a file, a folder that holds one (a finished run, an
    export), or the name of an adapter that ships.

    Raises:
        AllMemError: if there is none.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        if (path / ADAPTER).is_file():
            return path / ADAPTER
        raise AllMemError(
            f"the folder {path} holds no {ADAPTER}; name the folder of a finished run, or a file"
        )
    shipped = shipped_adapters()
    if str(name) in shipped:
        return Path(str(resources.files("allmem"))) / "resources" / "adapters" / str(name) / ADAPTER
    known = f"; those that come with allmem are {', '.join(shipped)}" if shipped else ""
    raise AllMemError(f"there is no file {name}{known}")


def _base_fingerprint(model: AllMemForCausalLM) -> str:
    """Of the frozen weights, by the names they had before conversion."""
    marker = ".self_attn.attention.core."
    own = {
        name.replace(marker, ".self_attn."): p
        for name, p in model.base.named_parameters()
        if ".self_attn." not in name or marker in name
    }
    return fingerprint(own)


def adapter_note(name: str | os.PathLike[str]) -> dict[str, Any]:
    """What an adapter's file says of its training: ``tokens``, ``steps``, and ``before``, the same
    of the adapter that it was trained on from; of a checkpoint its ``stage``.

    Args:
        name: as for ``find_adapter``.

    Raises:
        AllMemError: if there is no such file, or it is damaged or of something else.
    """
    note: dict[str, Any] = read_tensors(find_adapter(name), "adapter")[1].get("note") or {}
    return note


def trained_tokens(note: dict[str, Any]) -> int | None:
    """On how many tokens an adapter was trained, before included; ``None`` if it does not say."""
    tokens = note.get("tokens")
    before = trained_tokens(note["before"]) if note.get("before") else 0
    return None if tokens is None or before is None else tokens + before


def save_adapter(
    model: AllMemForCausalLM,
    path: str | os.PathLike[str],
    note: dict[str, Any] | None = None,
    *,
    lead: bool = True,
) -> None:
    """Write the memory's slow weights to one safetensors file, with the fingerprint of the base.

    Args:
        note: anything JSON-able to keep beside them.
        lead: whether this process writes, of several that share the model and all call.

    Raises:
        AllMemError: if the model has no memory, or the file cannot be written.
    """
    weights = {name: full_tensor(p).cpu() for name, p in model.memory_parameters().items()}
    header = adapter_header(model, note)
    if lead:
        write_tensors(path, "adapter", weights, header)


def adapter_header(model: AllMemForCausalLM, note: dict[str, Any] | None = None) -> dict[str, Any]:
    """What an adapter's file says about the model that its weights belong to.

    Raises:
        AllMemError: if the model has no memory.
    """
    if not model.memory_parameters():
        raise AllMemError("no layer of this model has a memory; there is nothing to save")
    config = model.config
    base_config: PreTrainedConfig = config.text_config
    return {
        "base": _base_fingerprint(model),
        "base_source": config.base_source,
        "vocab_size": base_config.vocab_size,
        "window": config.window,
        "sinks": config.sinks,
        "layers": config.layers,
        "mixer_options": config.mixer_options,
        "note": note or {},
    }


def load_adapter(
    base: AllMemForCausalLM | PreTrainedModel | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    other_base: bool = False,
    window: int | None = None,
    **load_options: Any,
) -> AllMemForCausalLM:
    """A base model with the memories of an adapter file.

    Args:
        base: what the adapter was trained on: a converted model of the same layout, a plain model
            (converted in place), or a source that ``convert`` takes.
        path: a file, a folder that holds one, or the name of one that ships (``find_adapter``).
        other_base: load the adapter on weights that are not those it was trained on, such as the
            original of a quantised base.
        window: W to convert a plain model with; default: what the file says.

    Raises:
        AllMemError: if the file is damaged or belongs to another base, or the window does not fit.
    """
    path = find_adapter(path)
    weights, header = read_tensors(path, "adapter")
    if window is not None:
        if isinstance(base, AllMemForCausalLM):
            raise AllMemError(
                f"window = {window} was given, but the model is converted already; leave it out, "
                "or read with a cache of that window"
            )
        header = {**header, "window": window}
    model = base if isinstance(base, AllMemForCausalLM) else _convert_as(base, header, load_options)
    load_weights(model, path, (weights, header), other_base=other_base)
    return model


def load_weights(
    model: AllMemForCausalLM,
    path: str | os.PathLike[str],
    contents: tuple[dict[str, Tensor], dict[str, Any]] | None = None,
    *,
    other_base: bool = False,
) -> None:
    """Give a converted model the memories of an adapter file.

    Args:
        contents: of the file, if it was read already.
        other_base: see ``load_adapter``.

    Raises:
        AllMemError: if the file is damaged or belongs to another base or layout.
    """
    weights, header = read_tensors(path, "adapter") if contents is None else contents
    _check_layout(model.config, header, path)
    found = _base_fingerprint(model)
    if found != header["base"] and not other_base:
        base_config: PreTrainedConfig = model.config.text_config
        words, own_words = header["vocab_size"], base_config.vocab_size
        hint = f", vocabulary {words} against {own_words}" if words != own_words else ""
        raise AllMemError(
            f"{path} was trained on another base model (fingerprint {header['base'][:12]}, from "
            f"{header['base_source']}; this one is {found[:12]}{hint}); pass other_base=True to "
            "load it all the same"
        )
    parameters = model.memory_parameters()
    if missing := sorted(set(parameters) ^ set(weights)):
        raise AllMemError(f"{path} does not fit the model's memories, for example {missing[0]}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            if parameter.shape != weights[name].shape:
                raise AllMemError(
                    f"{path}: {name} has the shape {tuple(weights[name].shape)}, the model needs "
                    f"{tuple(parameter.shape)}; the base model is another one"
                )
        for name, parameter in parameters.items():
            parameter.copy_(like(weights[name], parameter))


def _convert_as(
    base: PreTrainedModel | str | os.PathLike[str], header: dict[str, Any], options: dict[str, Any]
) -> AllMemForCausalLM:
    names = ["window" if name == "local" else name for name in header["layers"]]
    others = {k: v for k, v in header["mixer_options"].items() if k != "allmem"}
    return convert(
        base,
        window=header["window"],
        sinks=header["sinks"],
        mixers=names,
        memory=header["mixer_options"].get("allmem"),
        mixer_options=others,
        **options,
    )


def _check_layout(config: AllMemConfig, header: dict[str, Any], path: Any) -> None:
    # A file may be older than an option, which then had its default.
    options = {name: _filled(name, values) for name, values in header["mixer_options"].items()}
    for name, made in (("layers", header["layers"]), ("mixer_options", options)):
        if getattr(config, name) != made:
            raise AllMemError(
                f"{path} was made for {name} = {made}, the model has {getattr(config, name)}"
            )


def _filled(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """Every option of a memory."""
    kind = memory_kind(name)
    filled: dict[str, Any] = values if kind is None else kind.options(values).to_dict()
    return filled
