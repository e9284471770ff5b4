"""LongBench: 21 sets of questions about long texts, and LongBench-E, 13 of them by length.

Prompts, lengths of answers, cut and metrics are those of THUDM/LongBench at commit 2e00731f
(``LongBench/pred.py``, ``eval.py``, ``config``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from allmem.evaluation.benchmarks import benchmark
from allmem.evaluation.fields import Values, wrong_answers, wrong_language, wrong_texts
from allmem.evaluation.metrics.longbench import PARAGRAPH, best_score, first_line
from allmem.evaluation.model import EvaluatedModel
from allmem.evaluation.sources import Source
from allmem.evaluation.suites.row_task import RowTask, longest_prompt
from allmem.evaluation.task import FilledTemplate, Request, Task

__all__ = ["GROUPS", "TASKS", "LongBench"]

SETS: dict[str, dict[str, Any]] = benchmark("longbench")["sets"]
PAPER = ("dureader", "hotpotqa", "musique", "narrativeqa", "qmsum", "triviaqa")
BUCKETS = {"0-4k": 4000, "4-8k": 8000}
"""Lengths, in words or Chinese characters, below which a row of LongBench-E is in a bucket."""
ABOVE = "8k+"
FIELD = re.compile(r"\{(\w+)\}")
QUESTION = re.compile(r"(Question: |Query: |问题：)\{input\}")
"""In prompts that ask what is in ``input``; others make do without."""
UNTIL_NEWLINE = ("samsum",)
"""Sets whose answers end with their line: models go on with more dialogues."""


class LongBench(RowTask):
    """A set of LongBench.

    Args:
        name: of the set.
        extended: that of LongBench-E, with its buckets as cells.
    """

    def __init__(self, name: str, extended: bool = False) -> None:
        self.set = name
        self.rules = SETS[name]
        self.extended = extended
        self.cells = len(BUCKETS) + 1 if extended else 1
        file = f"{name}_e" if extended else name
        source = Source("longbench", file, "THUDM/LongBench", "data.zip")
        super().__init__(f"longbench/{file}", source, self.rules["metric"])

    def problem(self, values: Values) -> str | None:
        named = FIELD.findall(self.rules["prompt"])
        empty = () if QUESTION.search(self.rules["prompt"]) else ("input",)
        problem = wrong_texts(values, named, may_be_empty=empty) or wrong_answers(values)
        if problem is None and self.metric == "classification":
            problem = wrong_answers(values, "all_classes")
        if problem is None and self.metric in PARAGRAPH:
            if not all(PARAGRAPH[self.metric].search(answer) for answer in values["answers"]):
                problem = f"an answer of {values['answers']} names no paragraph"
        if problem is None and self.extended and not isinstance(values.get("length"), int):
            problem = "the field 'length' is missing or no whole number; buckets are made by it"
        return problem or wrong_language(values, self.rules["language"])

    def request(self, values: Values, model: EvaluatedModel) -> Request:
        return Request(
            text=FilledTemplate(
                self.rules["prompt"],
                {"context": values["context"], "input": values.get("input", "")},
            ),
            max_new_tokens=self.rules["max_new_tokens"],
            chat=self.rules["chat"],
            ends_at="\n" if self.set in UNTIL_NEWLINE else "",
            longest=longest_prompt(model.reach),
        )

    def reference(self, values: Values) -> dict[str, Any]:
        reference = {"answers": values["answers"]}
        if self.metric == "classification":
            reference["all_classes"] = values["all_classes"]
        return reference

    def cell(self, values: Values) -> Mapping[str, str | int | float]:
        if not self.extended:
            return {}
        return {"length": next((k for k, v in BUCKETS.items() if values["length"] < v), ABOVE)}

    def score(self, prediction: str, reference: Mapping[str, Any]) -> dict[str, float]:
        if self.rules["first_line"]:
            prediction = first_line(prediction)
        classes = reference.get("all_classes")
        return {self.metric: best_score(self.metric, prediction, reference["answers"], classes)}


EXTENDED = tuple(name for name, rules in SETS.items() if rules["extended"])
TASKS: dict[str, Callable[[], Task]] = {
    **{f"longbench/{name}": partial(LongBench, name) for name in SETS},
    **{f"longbench/{name}_e": partial(LongBench, name, extended=True) for name in EXTENDED},
}
GROUPS: dict[str, tuple[str, ...]] = {
    "longbench": tuple(f"longbench/{name}" for name in SETS),
    "longbench-paper": tuple(f"longbench/{name}" for name in PAPER),
    "longbench-e": tuple(f"longbench/{name}_e" for name in EXTENDED),
}
