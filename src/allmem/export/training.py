"""What a run's files say of its training: settings, teacher, data."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from allmem.data.config import SourceConfig
from allmem.data.inspection import summarise
from allmem.data.shards import INDEX, Index, read_index
from allmem.distill.recipe import RECIPE, Recipe
from allmem.distill.run_files import RUN
from allmem.errors import AllMemError
from allmem.export.names import published
from allmem.export.run import Trained

__all__ = ["training_facts"]

PATHS = {
    "adapter",
    "deepspeed",
    "folder",
    "held_out",
    "model",
    "prompts",
    "responses",
    "texts",
}
"""Keys of a recipe whose values may be paths."""


def training_facts(trained: Trained) -> dict[str, Any]:
    """The card's command, settings, teacher and data."""
    recipe = trained.recipe
    if recipe is not None:
        settings = _chosen(recipe)
        for key in ("output", "device"):
            settings.pop(key, None)
        return {
            "command": f"allmem distill {RECIPE}",
            "settings": settings,
            "settings_from": f"{RECIPE}, with names in place of paths",
            "teacher": _teacher(recipe),
            "data": _data(recipe, str(trained.run["essence"].get("data", ""))),
        }
    if not trained.run:
        return {}
    # The rest says nothing of the training, or stands elsewhere in the card; what names the data
    # may hold a path.
    told = ("data", "base model", "window", "sinks", "layers", "mixer_options")
    settings = {k: v for k, v in trained.run["essence"].items() if k not in told and v is not None}
    return {"settings": settings, "settings_from": f"Settings, as {RUN} keeps them"}


def _chosen(values: Any) -> dict[str, Any]:
    """What a configuration holds beside its defaults, as YAML knows it, with names for paths."""
    found: dict[str, Any] = {}
    for item in dataclasses.fields(values):
        value = getattr(values, item.name)
        default = item.default
        if item.default_factory is not dataclasses.MISSING:
            default = item.default_factory()
        if value == default:
            continue
        if dataclasses.is_dataclass(value):
            value = _chosen(value)
        elif item.name in PATHS and isinstance(value, str):
            value = published(value)
        elif isinstance(value, tuple):
            names = item.name in PATHS
            value = [published(v) if names else v for v in value]
        found[item.name] = value
    return found


def _teacher(recipe: Recipe) -> str:
    teacher = recipe.teacher
    if teacher.kind == "own":
        return "the model itself, with full attention"
    if teacher.kind == "stored":
        return "answers that were stored with the data (`allmem data teach`)"
    return f"`{published(str(teacher.model))}`"


def _data(recipe: Recipe, identity: str) -> list[str]:
    """What was learned from."""
    data = recipe.data
    rows = f"rows of up to {data.length:,} tokens"
    found = []
    if data.on_policy is not None:
        prompts = ", ".join(f"`{published(name)}`" for name in data.on_policy.prompts)
        found.append(
            f"Data: the student's own answers, made anew in each step, to the prompts of {prompts}."
        )
    if data.texts:
        names = ", ".join(f"`{published(name)}`" for name in data.texts)
        found.append(f"Data: plain text, {rows}: {names}.")
    if data.responses is not None:
        name = published(data.responses)
        found.append(f"Data: answers that were made before (`allmem collect`), {rows}: `{name}`.")
    if data.folder is None:
        return found
    found.append(f"Data: the folder `{published(data.folder)}` of `allmem data build`.")
    index = _same_index(data.folder, identity)
    if index is None:
        return found
    sources = ["| source | samples |", "|---|---|"]
    for i, values in enumerate(index.config["sources"], 1):
        source = SourceConfig(**values)
        kept = index.counts.get(source.label, {}).get("kept", 0)
        sources.append(f"| {_source_name(source, i)} | {kept:,} |")
    classes = ["| class | rows | samples | tokens | learned |", "|---|---|---|---|---|"]
    for one in summarise(index):
        numbers = (one.rows, one.samples, one.tokens, one.response_tokens)
        classes.append(f"| {one.name} | {' | '.join(f'{n:,}' for n in numbers)} |")
    return [*found, "\n".join(sources), "\n".join(classes)]


def _same_index(folder: str, identity: str) -> Index | None:
    """The index of the data that the run has read, if it is still there."""
    if not (Path(folder) / INDEX).is_file():
        return None
    try:
        index = read_index(folder, check=False)
    except AllMemError:
        return None
    return index if identity.startswith(f"{index.fingerprint} ") else None


def _source_name(source: SourceConfig, number: int) -> str:
    if source.path is not None and source.name is None:
        name = published(source.path)
    else:
        name = source.label
    name = name.replace("|", "\\|") or f"source {number}"
    if source.hub is None:
        return name
    at = f" at {source.revision}" if source.revision else ""
    label = "" if name == source.label and source.name is None else f" ({name})"
    subset = f", {source.subset}" if source.subset else ""
    return f"{source.hub}{subset}, {source.split}{at}{label}"
