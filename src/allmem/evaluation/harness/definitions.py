"""Which of lm-eval's tasks a task of ours is, where its rows lie, and the two brought together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from allmem.errors import AllMemError
from allmem.evaluation.bad_rows import bad_row
from allmem.evaluation.harness.files import Files, read_files
from allmem.evaluation.harness.lmeval import load_task, task_names
from allmem.evaluation.task import Setting
from allmem.evaluation.user_files import hub_page

__all__ = ["Definition", "Rows", "library_tasks"]

Document = dict[str, Any]


@dataclass(frozen=True)
class Definition:
    """One of lm-eval's tasks."""

    folder: str
    """Of lm-eval, in which it is."""
    task: str
    """Its name; with ``{subject}``, of one task for each."""
    keep: tuple[str, ...]
    """The fields of a document that prompts and scores are made of; only they are stored."""
    shots: int | None = None
    """Examples in the prompt; ``None`` for the task's own number."""
    samples: int = 1
    """Answers to each question, where answers are sampled."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Other names for its metrics."""

    def knows(self, name: str) -> bool:
        """Whether a task is this one, or of one of its subjects."""
        before, _, after = self.task.partition("{subject}")
        return name == self.task or (
            "{subject}" in self.task and name.startswith(before) and name.endswith(after)
        )

    def subjects(self) -> list[str | None]:
        """The subjects in lm-eval's order; ``None`` alone for a task without."""
        before, found, after = self.task.partition("{subject}")
        if not found:
            return [None]
        names = [name for name in task_names(self.folder) if self.knows(name)]
        return [name.removeprefix(before).removesuffix(after) for name in names]


@dataclass(frozen=True)
class Rows:
    """Where documents come from, if not from the hub."""

    files: Files
    document: Callable[[Document], Document | None]
    """From a row, one of ``forms``."""
    shots: Files | None = None
    """Rows with answers that prompts begin with."""


def library_tasks(
    definition: Definition, rows: Rows, setting: Setting
) -> Iterator[tuple[str | None, Any]]:
    """lm-eval's tasks by subject, with their documents.

    Raises:
        AllMemError: if rows are missing or cannot be read, lm-eval is missing, or the hub does not
            answer.
    """
    changes: dict[str, Any] = {}
    if definition.shots is not None:
        changes["num_fewshot"] = definition.shots
    subjects = definition.subjects()
    if setting.data is None:
        for subject in subjects:
            name = definition.task.format(subject=subject)
            yield subject, load_task(definition.folder, name, **changes)
        return
    asked = _by_subject(rows.files, rows.document, subjects, setting, setting.limit)
    shown = {}
    if rows.shots is not None:
        shown = _by_subject(rows.shots, rows.document, subjects, setting)
    for subject, documents in asked.items():
        shots = shown.get(subject, [])
        if len(shots) < (definition.shots or 0):
            raise AllMemError(
                f"the prompt of {subject} takes {definition.shots} examples, but there are "
                f"{len(shots)}; get them from {hub_page(rows.files.hub)}"
            )
        name = definition.task.format(subject=subject)
        yield subject, load_task(definition.folder, name, documents, shots, **changes)


def _by_subject(
    files: Files,
    document: Callable[[Document], Document | None],
    subjects: Sequence[str | None],
    setting: Setting,
    limit: int | None = None,
) -> dict[str | None, list[Document]]:
    """Documents from local files, at most ``limit`` of each, in lm-eval's order of subjects."""
    found: dict[str | None, list[Document]] = {subject: [] for subject in subjects}
    for line in read_files(files, setting):
        subject = line.values.get("subject") if subjects != [None] else None
        if limit is not None and len(found.get(subject, ())) >= limit:
            if len(found) == 1:
                break
            continue
        try:
            if subject not in found:
                raise ValueError(f"the subject {subject!r} is unknown")
            values = document(line.values)
        except ValueError as error:
            bad_row(setting, f"{line.place}: {error}")
            continue
        if values is not None:
            found[subject].append(values)
    return {subject: documents for subject, documents in found.items() if documents}
