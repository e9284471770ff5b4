"""A folder for the hub from a finished distillation: the adapter alone, or the whole model, with a
model card.

The card is drawn from the files of the run and of the base. No path of this machine gets into the
folder: what was named by a path is named by its last part.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from allmem.config import WindowConfig, check_chunk_fits_window
from allmem.errors import AllMemError
from allmem.export.base import CARD, describe_base, gguf_type
from allmem.export.card import Card, render
from allmem.export.names import published
from allmem.export.run import Trained, read_trained
from allmem.export.training import training_facts
from allmem.files import atomic_folder, write_tensors
from allmem.folder import save_folder
from allmem.models.adapter import ADAPTER
from allmem.models.modeling import AllMemForCausalLM
from allmem.opening import OpenedModel, open_model, resolve

__all__ = ["export"]

LARGE = 1 << 14
"""Numbers of a matrix that is worth halving."""


def export(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    merged: bool = False,
    half: bool = False,
    window: int | None = None,
    base: str | None = None,
    other_base: bool = False,
    dtype: str | None = None,
    device: str = "cpu",
) -> Path:
    """Write a folder that can be uploaded.

    Args:
        source: the folder of a finished run, or an adapter's file, of which the card then tells
            less.
        output: a new or empty folder.
        merged: write the converted model with the memories in it and its tokenizer.
        half: write the adapter's large matrices in bfloat16; not with ``merged``, which writes
            weights as they are.
        window: that it is read with unless a reader chooses another; default: that of the training.
            A memory that was trained beside a small one can be read beside a larger one.
        base: where the base model is, in place of what the adapter's file names; its weights are
            compared with those that the adapter was trained beside.
        other_base: export for a base with other weights all the same; the card says so.
        dtype, device: of the base; see ``open_model``.

    Raises:
        AllMemError: if the run is not finished, a file is missing, damaged or of something else,
            the base or the window does not fit, or the folder is in use. Nothing is left behind
            then.
    """
    if merged and half:
        raise AllMemError(
            "half is for the adapter alone; a merged model has the precision that dtype gives it"
        )
    target = _check_output(output)
    trained = read_trained(Path(source))
    trained_window = trained.header["window"]
    if window is not None:
        trained = _read_with(trained, window)
    named = base or trained.header["base_source"]
    opened = None
    if merged or base is not None:
        opened = _open(named, trained, base is None, other_base, dtype, device)
    found = describe_base(named, trained, opened)
    beside = trained.header["base_source"]
    card = Card(
        title=Path(output).absolute().name,
        merged=merged,
        base=found,
        trained_beside=None if beside is None else published(beside),
        gguf=found.gguf if found.same and found.gguf is not None else gguf_type(beside),
        header=trained.header,
        trained_window=trained_window,
        parameters=sum(t.numel() for t in trained.weights.values()),
        stages=trained.run.get("stages", []),
        **training_facts(trained),
        beyond=trained.run.get("essence", {}).get("positions", "beyond") == "beyond",
        before=trained.before,
        after=trained.after,
    )
    with _empty_place(target), atomic_folder(target) as part:
        if merged:
            assert opened is not None
            opened.model.config.window = trained.header["window"]
            _forget_paths(opened.model, found.name)
            save_folder(opened.model, opened.tokenizer, part)
        else:
            header = {k: v for k, v in trained.header.items() if k != "kind"}
            header["base_source"] = card.trained_beside
            weights = _halved(trained.weights) if half else trained.weights
            write_tensors(part / ADAPTER, "adapter", weights, header)
        (part / CARD).write_text(render(card), encoding="utf-8")
    return target


def _read_with(trained: Trained, window: int) -> Trained:
    """What was trained, to be read with another window."""
    sizes = WindowConfig(window, trained.header["sinks"])
    for options in trained.header["mixer_options"].values():
        if options.get("chunk") is not None:
            check_chunk_fits_window(options["chunk"], sizes.window)
    return dataclasses.replace(trained, header={**trained.header, "window": sizes.window})


def _halved(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Large matrices in bfloat16. Rates, norms and scales stay: small differences of theirs matter
    and their bytes do not."""
    return {
        name: tensor.bfloat16()
        if tensor.numel() >= LARGE and tensor.is_floating_point()
        else tensor
        for name, tensor in weights.items()
    }


def _open(
    named: str | None,
    trained: Trained,
    from_adapter: bool,
    other_base: bool,
    dtype: str | None,
    device: str,
) -> OpenedModel:
    if named is None:
        raise AllMemError(f"{trained.file} does not name its base; name it: --base MODEL")
    if from_adapter:
        try:
            resolve(named)
        except AllMemError as error:
            raise AllMemError(f"{error}, or name the base: --base MODEL") from error
    return open_model(
        named, adapter=str(trained.file), other_base=other_base, dtype=dtype, device=device
    )


def _check_output(output: str | os.PathLike[str]) -> Path:
    target = Path(output)
    if target.is_dir():
        if any(target.iterdir()):
            raise AllMemError(f"{target} exists and is not empty; choose another folder")
    elif target.exists():
        raise AllMemError(f"{target} is a file; name a folder")
    return target


@contextlib.contextmanager
def _empty_place(target: Path) -> Iterator[None]:
    """Take an empty folder out of the way; put it back if nothing came in its place."""
    empty = target.is_dir()
    try:
        if empty:
            target.rmdir()
        yield
    except OSError as error:
        raise AllMemError(f"cannot write {target}: {error.strerror}") from error
    finally:
        if empty and not target.exists():
            target.mkdir()


def _forget_paths(model: AllMemForCausalLM, name: str | None) -> None:
    """Let a model's configuration name its base without the path to it."""
    model.config.base_source = name
    text_config: Any = model.config.text_config
    for config in (model.config, text_config):
        config._name_or_path = ""
