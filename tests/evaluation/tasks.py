"""A task that needs no data, and rows that no model wrote."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from allmem.evaluation.bad_rows import bad_row
from allmem.evaluation.bootstrap import Scored
from allmem.evaluation.model import EvaluatedModel
from allmem.evaluation.task import Example, Part, PromptTask, Request, Setting
from tests.evaluation.answering import LetterTokenizer, random_ids


class Letters(PromptTask):
    """Prompts of random letters, of which every fourth pair begins alike."""

    metric = "vowels"

    def __init__(self, name: str = "letters/plain", number: int = 13, bad: int = 0) -> None:
        self.name = name
        self.number = number
        self.bad = bad

    def examples(self, setting: Setting, model: EvaluatedModel) -> Iterable[Example]:
        tokenizer = LetterTokenizer()
        for line in range(self.bad):
            bad_row(setting, f"{self.name}.jsonl, line {line + 1}: no text")
        for i in range(setting.limit or self.number):
            text = tokenizer.decode(random_ids(40, i // 4) + random_ids(3 + i % 5, 100 + i))
            yield Example(
                f"example-{i}", Request(text, 6), {"answer": i}, {"length": 40, "depth": i % 3}
            )

    def score(self, prediction: str, reference: Mapping[str, Any]) -> dict[str, float]:
        return {"vowels": float(prediction[:1] in "AEIOU"), "said": len(prediction) / 6}


def scored(values: Sequence[float], metric: str = "right", **more: Any) -> list[Scored]:
    """A row for every value."""
    return [
        Scored(str(i), str(i), [Part({metric: value}, **more)]) for i, value in enumerate(values)
    ]
