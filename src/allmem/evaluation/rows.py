"""The folder of a run: what was asked, and every answer.

    RUN/run.json                          models, tasks, who was asked which, groups, setting,
                                          versions, commands
    RUN/<model>/<suite>__<set>.jsonl      a header, then a line per example (``allmem.journal``)

Rows are the truth: scores are made of them, never stored. ``evaluate`` writes such a folder,
``Run`` reads it.
"""

from __future__ import annotations

import dataclasses
import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from allmem.errors import AllMemError, unknown_name
from allmem.evaluation.catalog import groups_within
from allmem.evaluation.run_file import RUN_FILE, RUN_FORMAT, RUN_KIND, read_run_file
from allmem.evaluation.task import Row, Setting, Task
from allmem.evaluation.verdicts import with_verdicts
from allmem.files import atomic_path
from allmem.journal import Journal, Kind, first_difference

__all__ = [
    "OF_EXAMPLES",
    "ROWS",
    "Run",
    "RowsFile",
    "bad_rows_path",
    "rows_path",
    "setting_header",
    "task_header",
    "write_run",
]

ROWS = Kind(
    "rows",
    1,
    make="make one with `allmem evaluate`",
    again="evaluate again, into another folder",
    repair="evaluate the rest again",
)
OF_EXAMPLES = ("examples", "fingerprint")
"""Keys of a header that tell which examples there are."""
TOLD = ("data", "skip_bad_rows", "beyond", "sinks", "chunk", "run_code")
"""Choices of a setting that do not change what an example's answer is; they may change which
examples there are, which a header tells by their fingerprint."""


class RowsFile:
    """All answers of one model to one task.

    Raises:
        AllMemError: if the file is missing or no file of rows.
    """

    def __init__(self, path: str | Path) -> None:
        self.journal = Journal(path, ROWS, _check)
        self.header = self.journal.header
        """``task``, ``model``, ``setting``, ``examples`` (how many a complete file has),
        ``fingerprint`` (of them), ``metric``, ``scale``, ``higher_is_better``."""

    def rows(self) -> list[Row]:
        """The rows, in the order of the task, with what was found out about them afterwards.

        Raises:
            AllMemError: if a line is damaged, naming it.
        """
        return with_verdicts(self.journal.path, [row for row, _ in self.journal.lines()])


class Run:
    """A run's folder, finished or not.

    Args:
        folder: that ``evaluate`` wrote.

    Raises:
        AllMemError: if it is none.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.about = read_run_file(folder)

    @property
    def labels(self) -> list[str]:
        """The models, in the order in which they were named; differences are taken from the
        ``baseline``."""
        return [model["label"] for model in self.about["models"]]

    @property
    def left_out(self) -> dict[str, dict[str, str]]:
        """Which tasks do not apply to which model, and why."""
        return self.about.get("left_out", {})

    @property
    def asked(self) -> dict[str, list[str]]:
        """Which tasks the commands asked of which model, without those that were left out. Where
        several commands did not write it down, those of which there are rows."""
        if "asked" in self.about:
            return self.about["asked"]
        once = len(self.about.get("commands", [])) < 2
        return {
            label: [
                task
                for task in self.tasks
                if self.has(label, task) or (once and task not in self.left_out.get(label, ()))
            ]
            for label in self.labels
        }

    @property
    def baseline(self) -> str:
        """The model that the others are compared with: the teacher, else the first."""
        return self.about.get("baseline") or self.labels[0]

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks."""
        return list(self.about["tasks"])

    @property
    def groups(self) -> dict[str, list[str]]:
        """Names of groups whose tasks are all in the run, whichever commands brought them."""
        within = {name: list(tasks) for name, tasks in groups_within(self.tasks).items()}
        return {**within, **self.about["groups"]}

    def identity(self, label: str) -> dict[str, Any]:
        """What a model is.

        Raises:
            AllMemError: if it is not in the run.
        """
        for model in self.about["models"]:
            if model["label"] == label:
                return model["identity"]
        raise AllMemError(unknown_name("model", label, self.labels))

    def path(self, label: str, task: str) -> Path:
        """Where the rows of a model and a task are."""
        return rows_path(self.folder, label, task)

    def has(self, label: str, task: str) -> bool:
        """Whether any were written."""
        return self.path(label, task).exists()

    def rows(self, label: str, task: str) -> RowsFile:
        """The rows of a model and a task.

        Raises:
            AllMemError: if there are none yet.
        """
        if not self.has(label, task):
            raise AllMemError(
                f"{self.folder} holds no answers of {label} to {task} yet; the same "
                "`allmem evaluate` goes on"
            )
        return RowsFile(self.path(label, task))

    def bad_rows(self, label: str, task: str) -> list[str]:
        """The lines of the data that were left out, each with its reason."""
        path = bad_rows_path(self.folder, label, task)
        return json.loads(path.read_text(encoding="utf-8"))["bad_rows"] if path.exists() else []


def rows_path(folder: Path, label: str, task: str) -> Path:
    """Where the rows of a model and a task go."""
    return folder / folder_name(label) / f"{task.replace('/', '__')}.jsonl"


def bad_rows_path(folder: Path, label: str, task: str) -> Path:
    """Where it is told which lines of the data were left out."""
    return rows_path(folder, label, task).with_suffix(".bad_rows.json")


def folder_name(label: str) -> str:
    """A label as the name of a folder on every system."""
    return re.sub(r"[^\w.+=-]+", "_", label).strip(".") or "_"


def setting_header(setting: Setting) -> dict[str, Any]:
    """What decides answers, for the header of a rows file."""
    values = dataclasses.asdict(setting)
    return {key: value for key, value in values.items() if key not in TOLD}


def task_header(task: Task, identity: dict[str, Any], setting: Setting) -> dict[str, Any]:
    """All of a header that does not take making the examples."""
    return {
        **ROWS.header,
        "task": task.name,
        "model": identity,
        "setting": setting_header(setting),
        **dict.fromkeys(OF_EXAMPLES),
        "metric": task.metric,
        "scale": task.scale,
        "higher_is_better": task.higher_is_better,
    }


def write_run(
    folder: Path,
    models: Sequence[dict[str, Any]],
    tasks: Sequence[str],
    groups: dict[str, Sequence[str]],
    baseline: str | None,
    left_out: dict[str, dict[str, str]],
    *,
    date: str,
    command: str,
    versions: dict[str, str],
    **about: Any,
) -> None:
    """Write ``run.json``. What an earlier command put into the folder stays, and the same command
    changes nothing.

    Args:
        models: of each ``label`` and ``identity``.
        left_out: see ``Run``.
        date: kept of the first command.
        command: kept of every command that differs.
        versions: as they are now; those of earlier commands stay beside them, and a change is told.
        about: setting and batch, as they are now.
    """
    run = Run(folder) if (folder / RUN_FILE).exists() else None
    before, asked = (run.about, run.asked) if run is not None else ({}, {})
    known = {model["label"]: model for model in [*before.get("models", []), *models]}
    told = before.get("left_out", {})
    now = {
        label: [task for task in tasks if task not in left_out.get(label, ())]
        for label in (model["label"] for model in models)
    }
    earlier = list(before.get("earlier_versions", []))
    if before.get("versions", versions) != versions:
        earlier.append(before["versions"])
        changed = first_difference(before["versions"], versions)
        warnings.warn(
            f"{folder} was begun with other versions ({changed}); scores may depend on them",
            stacklevel=3,
        )
    values = {
        "kind": RUN_KIND,
        "format": RUN_FORMAT,
        "models": list(known.values()),
        "tasks": list(dict.fromkeys([*before.get("tasks", []), *tasks])),
        "asked": {
            label: list(dict.fromkeys([*asked.get(label, ()), *now.get(label, ())]))
            for label in known
        },
        "groups": {**before.get("groups", {}), **{k: list(v) for k, v in groups.items()}},
        "baseline": baseline or before.get("baseline"),
        "left_out": {
            label: {**told.get(label, {}), **left_out.get(label, {})}
            for label in dict.fromkeys([*told, *left_out])
        },
        "date": before.get("date", date),
        "commands": list(dict.fromkeys([*before.get("commands", []), command])),
        "versions": versions,
        **({"earlier_versions": earlier} if earlier else {}),
        **about,
    }
    with atomic_path(folder / RUN_FILE) as part:
        text = json.dumps(values, ensure_ascii=False, indent=2, default=str)
        part.write_text(text + "\n", encoding="utf-8")


def _check(row: Row) -> None:
    for key in ("id", "reference", "cell"):
        row[key]
