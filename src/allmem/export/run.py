"""Reading what a distillation left in its folder, and saying what is missing."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from allmem.distill.checkpoint import last_checkpoint
from allmem.distill.evaluate import Comparison
from allmem.distill.recipe import RECIPE, Recipe, load_recipe
from allmem.distill.run_files import RESULTS, RUN
from allmem.errors import AllMemError
from allmem.files import read_tensors
from allmem.models.adapter import ADAPTER

__all__ = ["Trained", "read_trained"]


@dataclass(frozen=True)
class Trained:
    """An adapter, and what its run says of it."""

    file: Path
    weights: dict[str, Tensor]
    header: dict[str, Any]
    run: dict[str, Any] = field(default_factory=dict)
    """essence and stages; empty where there is the adapter's file alone."""
    recipe: Recipe | None = None
    before: Comparison | None = None
    after: Comparison | None = None


def read_trained(source: Path) -> Trained:
    """The adapter of a finished run, or of a file.

    Raises:
        AllMemError: if the run is not finished (says how far it is), or a file is missing, damaged
            or of another run.
    """
    if source.is_file():
        return Trained(source, *read_tensors(source, "adapter"))
    if not source.is_dir():
        raise AllMemError(f"there is no folder or file {source}; name a run or an adapter")
    run, results = _read_json(source / RUN), _read_json(source / RESULTS)
    if run is None:
        beside = (source / ADAPTER).is_file()
        hint = f"; name the adapter itself, {source / ADAPTER}" if beside else ""
        raise AllMemError(f"{source} is not the folder of a run: it holds no {RUN}{hint}")
    with _damaged(source / RUN):
        essence, stages = run["essence"], [(s["stage"], int(s["steps"])) for s in run["stages"]]
        fingerprint, layers = essence["base model"], essence["layers"]
    with _damaged(source / RESULTS):
        before = None if results is None else _compared(results["before"])
        after = None if results is None else _compared(results["after"])
    if before is None or after is None:
        raise AllMemError(_how_far(source, stages))
    if not (source / ADAPTER).is_file():
        raise AllMemError(
            f"the run in {source} is finished, but its {ADAPTER} is missing; was it moved?"
        )
    weights, header = read_tensors(source / ADAPTER, "adapter")
    if (header["base"], header["layers"]) != (fingerprint, layers):
        raise AllMemError(
            f"{source / ADAPTER} is not of the run that {source / RUN} tells of; one of them is "
            "from another folder"
        )
    recipe = load_recipe(str(source / RECIPE)) if (source / RECIPE).is_file() else None
    return Trained(source / ADAPTER, weights, header, run, recipe, before, after)


def _read_json(path: Path) -> Any:
    """``None`` if there is no such file."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AllMemError(f"{path} is damaged ({error})") from error


@contextlib.contextmanager
def _damaged(path: Path) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise AllMemError(f"{path} is damaged: it lacks what a run writes ({error!r})") from error


def _compared(values: dict[str, Any] | None) -> Comparison | None:
    return None if values is None else Comparison.from_dict(values)


def _how_far(folder: Path, stages: list[tuple[str, int]]) -> str:
    """Where a run that is not finished stands."""
    total = sum(steps for _, steps in stages)
    done, hint = f"it is before its first checkpoint, with {total:,} steps to go", ""
    begun = 0
    for number, (stage, steps) in enumerate(stages, 1):
        found = last_checkpoint(folder / f"{number}-{stage}")
        if found is not None:
            step = begun + int(found.name.rpartition("-")[2])
            done = f"its last checkpoint is at step {step:,} of {total:,} (stage {stage})"
            hint = f", or export that checkpoint, {found / ADAPTER}"
        begun += steps
    return f"the run in {folder} is not finished: {done}; go on with it by --resume{hint}"
