"""The files of a run beside its checkpoints: its plan and its figures."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from allmem.distill.config import DistillConfig, Span
from allmem.distill.evaluate import Comparison
from allmem.distill.rows import Rows
from allmem.errors import AllMemError
from allmem.files import atomic_path
from allmem.models.modeling import AllMemForCausalLM

__all__ = [
    "RESULTS",
    "RUN",
    "essence",
    "prepare_folder",
    "saved_before",
    "saved_plan",
    "write_plan",
    "write_results",
]

RESULTS = "results.json"
RUN = "run.json"


def prepare_folder(folder: str, resume: bool) -> Path:
    """Make the folder of a run; refuse to start over one that is there.

    Raises:
        AllMemError: if it holds a run and ``resume`` is not asked for, or the other way round.
    """
    path = Path(folder)
    run = path / RUN
    if resume and not run.is_file():
        raise AllMemError(f"there is no {run} to resume from; leave out --resume")
    if not resume and run.is_file():
        raise AllMemError(
            f"{path} holds a run already; go on with it by --resume, or choose another folder"
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AllMemError(f"cannot make the folder {path}: {error.strerror}") from error
    return path


def essence(
    model: AllMemForCausalLM, rows: Rows, config: DistillConfig, frozen: str
) -> dict[str, Any]:
    """What a resumed run must agree on, as JSON keeps it.

    Args:
        frozen: the fingerprint of the base model.
    """
    own = {k: v for k, v in model.config.essence().items() if k != "base"}
    values = {**own, **config.essence(), "base model": frozen, "data": rows.fingerprint()}
    return json.loads(json.dumps(values))


def saved_plan(folder: Path | None, agreed: dict[str, Any]) -> list[Span] | None:
    """The stages of the run that a folder holds.

    Raises:
        AllMemError: if it is another run, naming the first difference, or its file is damaged.
    """
    if folder is None or not (folder / RUN).is_file():
        return None
    try:
        saved = json.loads((folder / RUN).read_text())
        known = dict(saved["essence"])
        plan = [Span(**span) for span in saved["stages"]]
    except (ValueError, KeyError, TypeError) as error:
        raise AllMemError(
            f"{folder / RUN} is damaged ({type(error).__name__}: {error}); choose another output "
            "folder for a new run"
        ) from error
    for key in sorted({*known, *agreed}):
        if known.get(key) != agreed.get(key):
            raise AllMemError(
                f"{folder / RUN} was written with {key} = {known.get(key)!r}, now it is "
                f"{agreed.get(key)!r}; resume with the same options, or choose another output "
                "folder for a new run"
            )
    return plan


def write_plan(folder: Path | None, agreed: dict[str, Any], plan: list[Span]) -> None:
    """Keep what ``saved_plan`` reads."""
    _write(folder, RUN, {"essence": agreed, "stages": plan})


def _write(folder: Path | None, name: str, values: Any) -> None:
    if folder is None:
        return
    text = json.dumps(values, indent=2, default=dataclasses.asdict)
    with atomic_path(folder / name) as part:
        part.write_text(text + "\n")


def write_results(folder: Path | None, before: Comparison, after: Comparison | None) -> None:
    """Keep the figures as they become known."""
    _write(folder, RESULTS, {"before": before, "after": after})


def saved_before(folder: Path | None) -> Comparison | None:
    """The figures from before training, which a resumed run cannot measure any more."""
    if folder is None or not (folder / RESULTS).is_file():
        return None
    saved = json.loads((folder / RESULTS).read_text())["before"]
    return Comparison.from_dict(saved)
