"""Lets models answer tasks; every answer is in a file as soon as its batch is done.

A run that is killed anywhere goes on where it was, and ends with the same files, byte for byte:
the order of the examples depends on the task and the setting alone, and what a batch of them is on
``batch`` besides. The form of the folder is the business of ``allmem.evaluation.rows``.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from allmem.errors import AllMemError
from allmem.evaluation.bad_rows import collected_bad_rows
from allmem.evaluation.checks import (
    GO_ON,
    check_request,
    first_answered,
    first_twice,
    locked,
    look_at_data,
    look_at_files,
    tasks_left_out,
)
from allmem.evaluation.digest import fingerprint
from allmem.evaluation.model import EvaluatedModel
from allmem.evaluation.rows import (
    RowsFile,
    Run,
    bad_rows_path,
    rows_path,
    task_header,
    write_run,
)
from allmem.evaluation.task import Setting, Task
from allmem.evaluation.versions import deciding_versions
from allmem.files import atomic_path
from allmem.journal import begin, check_header, continued
from allmem.schema import check_positive

__all__ = ["RunProgress", "evaluate"]


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
        AllMemError: if a task asks for what a model cannot do, data is missing or unreadable,
            another process writes the folder, or it belongs to another run, naming the difference.
            What was answered before stays; the same call goes on from it.
    """
    check_positive(batch=batch)
    check_request(models, tasks, baseline)
    setting = setting.for_all(models)
    left_out = tasks_left_out(models, tasks)
    parts = [
        (model, task)
        for model in models
        for task in tasks
        if task.name not in left_out.get(model.label, ())
    ]
    folder = Path(folder)
    answered = first_answered(parts, folder)
    looked_through = {task.name for _, task in answered}
    look_at_data([part for part in parts if part[1].name not in looked_through], setting)
    _make(folder)
    identities = {model.label: model.identity() for model in models}
    with locked(folder):
        look_at_files(parts, identities, setting, folder)
        for model, task in answered:
            # Now, not when their turn comes, hours later. Nothing of their data is kept.
            _Part(model, task, identities[model.label], setting, folder, batch).check()
        for number, (model, task) in enumerate(parts, 1):
            part = _Part(model, task, identities[model.label], setting, folder, batch)
            part.check()
            if number == 1:
                # Not before it is known that this run goes on with what is there.
                write_run(
                    folder,
                    [{"label": label, "identity": found} for label, found in identities.items()],
                    [task.name for task in tasks],
                    dict(groups or {}),
                    baseline,
                    left_out,
                    setting=dataclasses.asdict(setting),
                    batch=batch,
                    versions=deciding_versions(),
                    date=datetime.now(UTC).isoformat(timespec="seconds"),
                    command=command,
                )

            def report(done: int, rate: float, number: int = number, part: _Part = part) -> None:
                if on_progress is not None:
                    on_progress(part.progress(number, len(parts), done, rate))

            part.run(report)
            task.settle(part.path, part.examples, setting)
            # Its data goes before that of the next part comes.
            del part, report
    return Run(folder)


class _Part:
    """One model and one task."""

    def __init__(
        self,
        model: EvaluatedModel,
        task: Task,
        identity: dict[str, Any],
        setting: Setting,
        folder: Path,
        batch: int,
    ) -> None:
        self.model, self.task, self.setting = model, task, setting
        self.path = rows_path(folder, model.label, task.name)
        self.bad_path = bad_rows_path(folder, model.label, task.name)
        with collected_bad_rows() as self.bad_rows:
            examples = list(task.examples(setting, model))
        twice = first_twice(example.id for example in examples)
        if twice is not None:
            raise AllMemError(f"{task.name} has two examples with the id {twice!r}")
        self.batches = task.group(examples, batch)
        self.examples = [example for of_one in self.batches for example in of_one]
        known = {"examples": self.total, "fingerprint": fingerprint(self.examples)}
        self.header = {**task_header(task, identity, setting), **known}
        """What decides the rows, and what they mean."""

    @property
    def total(self) -> int:
        """Examples."""
        return len(self.examples)

    def progress(self, number: int, parts: int, done: int, rate: float) -> RunProgress:
        """How far this part is, at so many rows a second."""
        return RunProgress(
            self.model.label,
            self.task.name,
            number,
            parts,
            done,
            self.total,
            len(self.bad_rows),
            rate,
            (self.total - done) / rate if rate else 0.0,
        )

    def run(self, report: Callable[[int, float], None]) -> None:
        """Answer what is not answered yet."""
        _make(self.path.parent)
        self._tell_bad_rows()
        begin(self.path, self.header)
        found, end = self._found()
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

    def check(self) -> None:
        """See that what is there was begun like this.

        Raises:
            AllMemError: if it was not, naming the first difference.
        """
        if self.path.exists():
            check_header(RowsFile(self.path).journal, self.header, (), GO_ON)

    def _found(self) -> tuple[int, int]:
        """How many rows of whole batches are in the file, and at which byte they end.

        Raises:
            AllMemError: if it is damaged.
        """
        journal = RowsFile(self.path).journal
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


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AllMemError(f"cannot make the folder {folder}: {error.strerror}") from error
