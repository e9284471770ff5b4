"""From names to models under test: one checkpoint as several readers with several sizes, beside its
teacher.

It knows how models are loaded, not what they are asked.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from allmem.choices import Conversion
from allmem.config import WindowConfig
from allmem.errors import AllMemError
from allmem.evaluation.feeding import PlainModel, Source
from allmem.evaluation.local import LocalModel
from allmem.evaluation.sizes import Sizes
from allmem.models.modeling import AllMemForCausalLM
from allmem.models.rope_scaling import RopeScaling, scaled
from allmem.opening import OpenedModel, open_base, open_model

__all__ = ["BASE", "local_models", "name_of", "open_source", "scaled_teacher", "teacher_of"]

BASE = "base"
"""As a teacher: the model that a converted one was made from."""


def open_source(
    source: str, conversion: Conversion, *, adapter: str | None = None, **options: Any
) -> Source:
    """Load a model: as it is, unless it is converted, or is to be by a conversion or an adapter.

    Args:
        options: as for ``allmem.opening.open_model``.

    Raises:
        AllMemError: if anything is missing, damaged or does not fit.
    """
    if adapter is not None or conversion != Conversion():
        return open_model(source, conversion, adapter=adapter, **options)
    options.pop("other_base", None)
    model, tokenizer = open_base(source, **options)
    if isinstance(model, AllMemForCausalLM):
        return OpenedModel(model, tokenizer, was_converted=True)
    return PlainModel(model, tokenizer)


def local_models(
    opened: Source, name: str, readers: Sequence[str] = ("memory",), sizes: Sequence[Sizes] = ()
) -> list[LocalModel]:
    """A model as every reader with all sizes; all share the same weights.

    Args:
        name: with which the labels begin.
        sizes: empty for the model's own.

    Raises:
        AllMemError: if a plain model is asked for readers or sizes, or sizes do not fit the model.
    """
    if sizes and not isinstance(opened, OpenedModel):
        raise AllMemError(
            f"{name} is not converted: it reads without a window; leave out the sizes"
        )
    models = []
    grid: Sequence[Sizes | None] = sizes or [None]
    for size, reader in itertools.product(grid, dict.fromkeys(readers)):
        sized = opened
        if size is not None and isinstance(opened, OpenedModel):
            window = WindowConfig(size.window, size.sinks)
            sized = dataclasses.replace(opened, window=window, chunk=size.chunk)
            # Sizes that do not fit are refused now, not in the middle of a run.
            sized.new_cache()
        parts = [name]
        parts += [] if reader == "memory" else [reader]
        parts += [] if size is None else [str(size)]
        models.append(LocalModel(sized, ", ".join(parts), reader))
    return models


def teacher_of(
    opened: Source,
    teacher: str,
    taken: Sequence[str],
    *,
    dtype: str | None = None,
    device: str | None = None,
) -> LocalModel:
    """The model that another one is compared with, as it is.

    Args:
        teacher: its name, or ``BASE``.
        taken: labels that other models have.
        dtype: the other model's if not given: the difference would else be that of rounding too.
        device: as for ``open_base``.

    Raises:
        AllMemError: if it is not known or cannot be loaded.
    """
    source = teacher
    if teacher == BASE and not Path(BASE).exists():
        config: Any = opened.model.config
        source = getattr(config, "base_source", None) or ""
        if not source:
            raise AllMemError("the model does not say what it was converted from; name its teacher")
    dtype = dtype or str(opened.model.dtype).removeprefix("torch.")
    model, tokenizer = open_base(source, dtype=dtype, device=device)
    if isinstance(model, AllMemForCausalLM):
        raise AllMemError(f"the teacher {source} is converted itself; name the original model")
    name = name_of(source)
    label = f"{name} (teacher)" if name in taken else name
    return LocalModel(PlainModel(model, tokenizer), label)


def scaled_teacher(teacher: LocalModel, scaling: RopeScaling) -> LocalModel:
    """The same teacher, sharing its weights, with its positions scaled to read further.

    Raises:
        AllMemError: if its positions cannot be.
    """
    plain = PlainModel(scaled(teacher.opened.model, scaling), teacher.tokenizer, scaling)
    return LocalModel(plain, f"{teacher.label}, {scaling}")


def name_of(source: str) -> str:
    """The last part of a path or hub name."""
    return Path(source).expanduser().resolve().name if Path(source).exists() else Path(source).name
