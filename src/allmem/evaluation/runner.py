"""Lets models answer tasks; every answer is in a file as soon as its batch is done.

A run that is killed anywhere goes on where it was, and ends with the same files, byte for byte:
the order of the examples depends on the task and the setting alone, and what a batch of them is on
``batch`` besides. The form of the folder is the business of ``allmem.evaluation.rows``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from allmem._version import __version__
from allmem.errors import AllMemError
from allmem.evaluation.bad_rows import collected_bad_rows
from allmem.evaluation.model import EvaluatedModel
from allmem.evaluation.rows import (
    ROWS,
    RowsFile,
    Run,
    bad_rows_path,
    folder_name,
    rows_path,
    setting_header,
    write_run,
)
from allmem.evaluation.task import Setting, Task
from allmem.files import atomic_path
from allmem.journal import begin, check_header, continued
from allmem.schema import check_positive

__all__ = ["RunProgress", "evaluate"]

GO_ON = "go on with the same model, data and options, or name another folder"


@dataclass(frozen=True)
class RunProgress:
    """How far a run is."""

    label: str
    """Of the model."""
    task: str
    part: int
    """Which of the pairs of a model and a task this is, from 1."""
    parts: int
    done: int
    """Rows of this part that are in its file."""
    total: int
    bad_rows: int
    """Lines of the data that were left out."""
    rows_per_second: float
    """Since this part was begun, or gone on with."""
    seconds_left: float
    """Of this part."""


def evaluate(
    models: Sequence[EvaluatedModel],
    tasks: Sequence[Task],
    setting: Setting,
    folder: str | Path,
    *,
    batch: int = 8,
    groups: Mapping[str, Sequence[str]] | None = None,
    baseline: str | None = None,
    command: str = "",
    on_progress: Callable[[RunProgress], None] | None = None,
) -> Run:
    """Let every model answer every task; go on with a run that an earlier call began.

    Args:
        models: one after another.
        tasks: one after another.
        setting: for all of them.
        folder: of the run. Models and tasks that an earlier call put into it stay.
        batch: examples that are answered together; changes nothing but the rounding.
        groups: names of tasks whose scores shall be averaged, by the name of the group.
        baseline: label of the model that the others are compared with; ``None`` for the first.
        command: how the run was begun, to be kept beside it.
        on_progress: called when a part begins and after every batch.

    Raises:
        AllMemError: if a task asks for what a model cannot do, data is missing or unreadable, or
            the folder belongs to another run, naming the difference. What was answered before
            stays; the same call goes on from it.
    """
    check_positive(batch=batch)
    _check(models, tasks, baseline)
    if setting.beyond is None:
        setting = dataclasses.replace(setting, beyond=max(model.sees for model in models))
    left_out = _left_out(models, tasks)
    parts = [
        (model, task)
        for model in models
        for task in tasks
        if task.name not in left_out.get(model.label, ())
    ]
    _look_at_data(parts, setting)
    folder = Path(folder)
    _make(folder)
    identities = {model.label: model.identity() for model in models}
    write_run(
        folder,
        [{"label": label, "identity": identity} for label, identity in identities.items()],
        [task.name for task in tasks],
        dict(groups or {}),
        baseline,
        left_out,
        setting=dataclasses.asdict(setting),
        batch=batch,
        versions=_versions(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
    )
    for number, (model, task) in enumerate(parts, 1):
        part = _Part(model, task, setting, folder, batch)

        def report(done: int, rate: float, number: int = number, part: _Part = part) -> None:
            if on_progress is not None:
                left = (part.total - done) / rate if rate else 0.0
                on_progress(
                    RunProgress(
                        part.model.label,
                        part.task.name,
                        number,
                        len(parts),
                        done,
                        part.total,
                        len(part.bad_rows),
                        rate,
                        left,
                    )
                )

        part.run(identities[model.label], report)
    return Run(folder)


class _Part:
    """One model and one task."""

    def __init__(
        self, model: EvaluatedModel, task: Task, setting: Setting, folder: Path, batch: int
    ) -> None:
        self.model, self.task, self.setting = model, task, setting
        self.path = rows_path(folder, model.label, task.name)
        self.bad_path = bad_rows_path(folder, model.label, task.name)
        with collected_bad_rows() as self.bad_rows:
            examples = list(task.examples(setting, model))
        twice = _first_twice(example.id for example in examples)
        if twice is not None:
            raise AllMemError(f"{task.name} has two examples with the id {twice!r}")
        self.batches = task.group(examples, batch)
        self.examples = [example for of_one in self.batches for example in of_one]

    @property
    def total(self) -> int:
        """Examples."""
        return len(self.examples)

    def run(self, identity: dict[str, Any], report: Callable[[int, float], None]) -> None:
        """Answer what is not answered yet."""
        header = self._header(identity)
        _make(self.path.parent)
        self._tell_bad_rows()
        begin(self.path, header)
        found, end = self._found(header)
        report(found, 0.0)
        if found == self.total:
            # Nothing is opened for writing: a finished run may lie where nothing can be written.
            return
        begun = time.perf_counter()
        done = 0
        with continued(self.path, end) as pen:
            for examples in self.batches:
                done += len(examples)
                if done <= found:
                    continue
                answers = self.task.answer(self.model, examples, self.setting)
                pen.write(
                    {
                        "id": example.id,
                        "cell": dict(example.cell),
                        "reference": dict(example.reference),
                        **answer,
                    }
                    for example, answer in zip(examples, answers, strict=True)
                )
                report(done, (done - found) / max(time.perf_counter() - begun, 1e-9))

    def _header(self, identity: dict[str, Any]) -> dict[str, Any]:
        """What decides the rows, and what they mean."""
        digest = hashlib.sha256()
        for example in self.examples:
            known = [example.id, dict(example.cell), dict(example.reference)]
            digest.update(json.dumps(known, sort_keys=True).encode())
        return {
            **ROWS.header,
            "task": self.task.name,
            "model": identity,
            "setting": setting_header(self.setting),
            "examples": self.total,
            "fingerprint": digest.hexdigest()[:16],
            "metric": self.task.metric,
            "scale": self.task.scale,
            "higher_is_better": self.task.higher_is_better,
        }

    def _found(self, header: dict[str, Any]) -> tuple[int, int]:
        """How many rows of whole batches are in the file, and at which byte they end.

        Raises:
            AllMemError: if it belongs to another run, or is damaged.
        """
        journal = RowsFile(self.path).journal
        check_header(journal, header, (), GO_ON)
        ends = [journal.header_end]
        for number, (row, end) in enumerate(journal.lines()):
            if number == self.total or row["id"] != self.examples[number].id:
                raise AllMemError(
                    f"{self.path}, line {number + 2} is not the row that belongs there; it was "
                    f"altered after it was written: {GO_ON}"
                )
            ends.append(end)
        whole = 0
        for examples in self.batches:
            if whole + len(examples) > len(ends) - 1:
                break
            whole += len(examples)
        return whole, ends[whole]

    def _tell_bad_rows(self) -> None:
        if not self.bad_rows:
            self.bad_path.unlink(missing_ok=True)
            return
        with atomic_path(self.bad_path) as part:
            text = json.dumps({"bad_rows": self.bad_rows}, ensure_ascii=False, indent=2)
            part.write_text(text + "\n", encoding="utf-8")


def _check(models: Sequence[EvaluatedModel], tasks: Sequence[Task], baseline: str | None) -> None:
    """What can be known before anything is run."""
    if not models or not tasks:
        raise AllMemError("nothing to evaluate: give at least one model and one task")
    for what, names in (
        ("models", [folder_name(model.label) for model in models]),
        ("tasks", [task.name for task in tasks]),
    ):
        twice = _first_twice(names)
        if twice is not None:
            raise AllMemError(f"two {what} are called {twice!r}; name them apart")
    if baseline is not None and baseline not in [model.label for model in models]:
        raise AllMemError(f"baseline = {baseline!r} is none of the models")
    for model in models:
        for task in tasks:
            for need in task.needs:
                if getattr(type(model), need) is getattr(EvaluatedModel, need):
                    raise AllMemError(
                        f"{task.name} asks for more than answers ({need}), which {model.label} "
                        "cannot give; load the model here, or leave the task out"
                    )


def _left_out(models: Sequence[EvaluatedModel], tasks: Sequence[Task]) -> dict[str, dict[str, str]]:
    """Which tasks do not apply to which model, and why.

    Raises:
        AllMemError: if one applies to none.
    """
    found: dict[str, dict[str, str]] = {}
    for task in tasks:
        reasons = {model.label: task.refuses(model) for model in models}
        if all(reasons.values()):
            raise AllMemError(f"{task.name} cannot be run: {next(iter(reasons.values()))}")
        for label, why in reasons.items():
            if why is not None:
                warnings.warn(f"{task.name} is left out for {label}: {why}", stacklevel=3)
                found.setdefault(label, {})[task.name] = why
    return found


def _look_at_data(parts: Sequence[tuple[EvaluatedModel, Task]], setting: Setting) -> None:
    """Make one example of every task: data that is not there is told now, not after hours.

    Raises:
        AllMemError: as ``Task.examples``, or if a task has none.
    """
    first = {task.name: (model, task) for model, task in reversed(parts)}
    for model, task in first.values():
        with collected_bad_rows():
            if next(iter(task.examples(setting, model)), None) is None:
                raise AllMemError(f"{task.name} has no examples with this data and these options")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AllMemError(f"cannot make the folder {folder}: {error.strerror}") from error


def _first_twice(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _versions() -> dict[str, str]:
    found = {name: version(name) for name in ("torch", "transformers")}
    return {"allmem": __version__, "python": platform.python_version(), **found}
