"""A suite that needs no data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from allmem.evaluation.model import EvaluatedModel
from allmem.evaluation.task import Example, PromptTask, Request, Setting


class Question(PromptTask):
    """Asks who, or what."""

    metric = "said"

    def __init__(self, word: str) -> None:
        self.name = f"questions/{word}"
        self.word = word

    def examples(self, setting: Setting, model: EvaluatedModel) -> Iterable[Example]:
        for i in range(setting.limit or 5):
            yield Example(str(i), Request(f"{'The maid. ' * i}{self.word}?", 8), {"at": i})

    def score(self, prediction: str, reference: Mapping[str, Any]) -> dict[str, float]:
        return {"said": len(prediction) % 2}


TASKS = {f"questions/{word}": lambda word=word: Question(word) for word in ("who", "what")}
GROUPS = {"questions-all": tuple(TASKS)}
