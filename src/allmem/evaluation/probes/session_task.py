"""Tasks that read one text at a time and look at what happens on the way."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from allmem.evaluation.model import EvaluatedModel
from allmem.evaluation.task import Example, Row, Setting, Task

__all__ = ["SessionTask"]


class SessionTask(Task):
    """A task whose examples are read in sessions, each by itself: a row is kept as soon as its text
    was read, whatever the batch."""

    needs = ("session",)

    @abstractmethod
    def measure(self, model: EvaluatedModel, example: Example, setting: Setting) -> Row:
        """Read one text."""

    def answer(
        self, model: EvaluatedModel, examples: Sequence[Example], setting: Setting
    ) -> list[Row]:
        return [self.measure(model, example, setting) for example in examples]

    def group(self, examples: Sequence[Example], batch: int) -> list[list[Example]]:
        return [[example] for example in examples]
