"""Made-up models and tasks, and runs of them through the real runner: what every model answers to
every example is written down by the test."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from allmem.evaluation.model import Completion, EvaluatedModel, Prompt
from allmem.evaluation.rows import Run
from allmem.evaluation.runner import evaluate
from allmem.evaluation.task import Example, PromptTask, Request, Setting
from allmem.reading import Sampling

RIGHT, WRONG = "right", "wrong"


class MadeModel(EvaluatedModel):
    """Answers as it is told: ``answers[example's text]``."""

    def __init__(self, label: str, answers: Mapping[str, str], **identity: Any) -> None:
        self.label = label
        self.answers = answers
        self.about = {"weights": label, **identity}

    def identity(self) -> dict[str, Any]:
        return dict(self.about)

    def complete(
        self, prompts: Sequence[Prompt], sampling: Sampling, numbers: Sequence[int]
    ) -> list[Completion]:
        return [
            Completion(self.answers.get(prompt.text, WRONG), 100, 7, finished=True)
            for prompt in prompts
        ]


class MadeTask(PromptTask):
    """Examples named by the test, right or wrong; ``stale`` counts answers that say so."""

    metric = "exact"

    def __init__(self, name: str, cells: Mapping[str, Mapping[str, Any]]) -> None:
        self.name = name
        self.cells = cells
        self.stop_after: int | None = None

    def examples(self, setting: Setting, model: EvaluatedModel) -> Iterable[Example]:
        return [
            Example(name, Request(f"{self.name} {name}", 8), cell=cell)
            for name, cell in self.cells.items()
        ]

    def answer(
        self, model: EvaluatedModel, examples: Sequence[Example], setting: Setting
    ) -> list[dict[str, Any]]:
        if self.stop_after is not None:
            if self.stop_after == 0:
                raise KeyboardInterrupt
            self.stop_after -= 1
        return super().answer(model, examples, setting)

    def score(self, prediction: str, reference: Mapping[str, Any]) -> dict[str, float]:
        return {"exact": float(prediction == RIGHT), "stale": float(prediction == "stale")}


def plain(name: str, count: int = 4) -> MadeTask:
    """A task without cells: examples 0, 1, 2 ..."""
    return MadeTask(name, {str(i): {} for i in range(count)})


def knows(label: str, right: Mapping[str, Iterable[int | str]], **identity: Any) -> MadeModel:
    """A model that is right about some examples of tasks, by their names."""
    answers = {f"{task} {name}": RIGHT for task, names in right.items() for name in names}
    return MadeModel(label, answers, **identity)


def run(
    folder: Path,
    models: Sequence[EvaluatedModel],
    tasks: Sequence[MadeTask],
    groups: Mapping[str, Sequence[str]] | None = None,
    **setting: Any,
) -> dict[str, Any]:
    """Evaluate, and give what a report needs to know of the tasks."""
    evaluate(
        models,
        tasks,
        dataclasses.replace(Setting(), **setting),
        folder,
        batch=1,
        groups=groups,
        command="allmem evaluate made-up",
    )
    assert Run(folder).labels == [model.label for model in models]
    return {task.name: task for task in tasks}
