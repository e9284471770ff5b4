"""What is looked at before a run begins or goes on: it fails before it has written anything."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from allmem.errors import AllMemError
from allmem.evaluation.bad_rows import collected_bad_rows
from allmem.evaluation.model import EvaluatedModel
from allmem.evaluation.rows import (
    OF_EXAMPLES,
    RowsFile,
    Run,
    folder_name,
    rows_path,
    task_header,
)
from allmem.evaluation.run_file import RUN_FILE
from allmem.evaluation.task import Setting, Task
from allmem.journal import check_header, first_difference

__all__ = [
    "GO_ON",
    "check_request",
    "first_answered",
    "first_twice",
    "locked",
    "look_at_data",
    "look_at_files",
    "tasks_left_out",
]

GO_ON = "go on with the same model, data and options, or name another folder"


def check_request(
    models: Sequence[EvaluatedModel], tasks: Sequence[Task], baseline: str | None
) -> None:
    """What can be known before anything is run."""
    if not models or not tasks:
        raise AllMemError("nothing to evaluate: give at least one model and one task")
    for what, names in (
        ("models", [folder_name(model.label) for model in models]),
        ("tasks", [task.name for task in tasks]),
    ):
        twice = first_twice(names)
        if twice is not None:
            raise AllMemError(f"two {what} are called {twice!r}; name them apart")
    if baseline is not None and baseline not in [model.label for model in models]:
        raise AllMemError(f"baseline = {baseline!r} is none of the models")


def tasks_left_out(
    models: Sequence[EvaluatedModel], tasks: Sequence[Task]
) -> dict[str, dict[str, str]]:
    """Which tasks do not apply to which model, and why; each is told.

    Raises:
        AllMemError: if no model can be asked any of them.
    """
    refused = {
        (model.label, task.name): why
        for task in tasks
        for model in models
        if (why := task.refuses(model)) is not None
    }
    if len(refused) == len(models) * len(tasks):
        (_, name), why = next(iter(refused.items()))
        raise AllMemError(f"{name} cannot be run: {why}")
    found: dict[str, dict[str, str]] = {}
    for (label, name), why in refused.items():
        warnings.warn(f"{name} is left out for {label}: {why}", stacklevel=3)
        found.setdefault(label, {})[name] = why
    return found


def first_answered(
    parts: Sequence[tuple[EvaluatedModel, Task]], folder: Path
) -> list[tuple[EvaluatedModel, Task]]:
    """Of every task that has a file of rows in the folder, the first model that has one: by it
    other data is noticed. Without tasks that are ``slow_to_make``."""
    found: dict[str, tuple[EvaluatedModel, Task]] = {}
    for model, task in parts:
        if not task.slow_to_make and rows_path(folder, model.label, task.name).exists():
            found.setdefault(task.name, (model, task))
    return list(found.values())


def look_at_data(parts: Sequence[tuple[EvaluatedModel, Task]], setting: Setting) -> None:
    """Make one example of every task: data that is not there is told now, not after hours.

    Raises:
        AllMemError: as ``Task.examples``, or if a task has none.
    """
    first = {task.name: (model, task) for model, task in reversed(parts)}
    for model, task in first.values():
        with collected_bad_rows():
            if next(iter(task.examples(setting, model)), None) is None:
                raise AllMemError(f"{task.name} has no examples with this data and these options")


def look_at_files(
    parts: Sequence[tuple[EvaluatedModel, Task]],
    identities: Mapping[str, dict[str, Any]],
    setting: Setting,
    folder: Path,
) -> None:
    """See that nothing in the folder is of another model or setting, before anything is written.
    Which examples there are is not looked at: to know it takes making them.

    Raises:
        AllMemError: if something is, naming the first difference.
    """
    for label, identity in identities.items():
        _check_identity(folder, label, identity)
    for model, task in parts:
        path = rows_path(folder, model.label, task.name)
        if path.exists():
            header = task_header(task, identities[model.label], setting)
            check_header(RowsFile(path).journal, header, OF_EXAMPLES, GO_ON)


def _check_identity(folder: Path, label: str, identity: dict[str, Any]) -> None:
    """See that nothing in a folder has this label and is another model.

    Raises:
        AllMemError: if something is, naming the first difference.
    """
    known: list[tuple[Path, dict[str, Any]]] = []
    if (folder / RUN_FILE).exists():
        run = Run(folder)
        if label in run.labels:
            known.append((run.folder / RUN_FILE, run.identity(label)))
    paths = sorted((folder / folder_name(label)).glob("*.jsonl"))
    known += [(path, RowsFile(path).header["model"]) for path in paths]
    for path, theirs in known:
        found = first_difference({"model": theirs}, {"model": identity})
        if found is not None:
            raise AllMemError(
                f"{path} was begun with {found}: {label!r} was another model; give this one a name "
                "of its own (--label), or name another folder"
            )


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from writing a run, where the system can; nothing is left behind.

    Raises:
        AllMemError: if one is writing it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    held = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AllMemError(
                f"another process is writing the run {folder}; wait for it, or name another folder"
            ) from None
        except OSError:
            # Some network disks know no locks of folders: as on systems without locks.
            pass
        yield
    finally:
        os.close(held)


def first_twice(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
