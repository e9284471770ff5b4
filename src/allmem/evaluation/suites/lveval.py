"""LV-Eval: 11 sets of questions about texts of 16k to 256k words, the same ones at each length.

Prompts, lengths of answers, cut and metrics are those of infinigence/LVEval at commit 63e7ae93
(``config.py``, ``prediction.py``, ``metrics.py``, ``evaluation.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from allmem.evaluation.benchmarks import benchmark
from allmem.evaluation.fields import Values, wrong_answers, wrong_language, wrong_texts
from allmem.evaluation.metrics.lveval import METRICS
from allmem.evaluation.model import EvaluatedModel
from allmem.evaluation.sources import Source
from allmem.evaluation.suites.row_task import RowTask, longest_prompt
from allmem.evaluation.task import FilledTemplate, Request, Task

__all__ = ["GROUPS", "TASKS", "LVEval"]

SETS: dict[str, dict[str, Any]] = benchmark("lveval")["sets"]
LENGTHS: list[str] = benchmark("lveval")["lengths"]
FACTS = "factrecall"
"""How the sets of one fact, 200 times in other places, begin: they outweigh the others' average."""


class LVEval(RowTask):
    """A set of LV-Eval at one of its lengths.

    Args:
        name: of the set.
        length: one of ``LENGTHS``.
    """

    def __init__(self, name: str, length: str) -> None:
        self.rules = SETS[name]
        self.length = length
        source = Source("lveval", f"{name}_{length}", "Infinigence/LVEval", f"{name}.zip")
        super().__init__(f"lveval/{source.name}", source, self.rules["metric"])

    def problem(self, values: Values) -> str | None:
        keywords = values.get("answer_keywords")
        problem = wrong_texts(values, ("context", "input")) or wrong_answers(values)
        if problem is None and not values["answers"][0].strip():
            problem = "the first answer, the only one that counts, is empty"
        if problem is None and not isinstance(keywords, str | None):
            problem = f"the field 'answer_keywords' is a {type(keywords).__name__}, not a text"
        return problem or wrong_language(values, self.rules["language"])

    def request(self, values: Values, model: EvaluatedModel) -> Request:
        return Request(
            text=FilledTemplate(
                self.rules["prompt"], {"context": values["context"], "input": values["input"]}
            ),
            max_new_tokens=self.rules["max_new_tokens"],
            longest=longest_prompt(model.reach),
        )

    def reference(self, values: Values) -> dict[str, Any]:
        return {"answers": values["answers"], "keywords": values.get("answer_keywords")}

    def cell(self, values: Values) -> Mapping[str, str | int | float]:
        return {"length": self.length}

    def score(self, prediction: str, reference: Mapping[str, Any]) -> dict[str, float]:
        score = METRICS[self.metric](prediction, reference["answers"][0], reference["keywords"])
        return {self.metric: score}


def _names(length: str, left_out: str | None = None) -> tuple[str, ...]:
    chosen = [name for name in SETS if left_out is None or not name.startswith(left_out)]
    return tuple(f"lveval/{name}_{length}" for name in chosen)


TASKS: dict[str, Callable[[], Task]] = {
    f"lveval/{name}_{length}": partial(LVEval, name, length) for length in LENGTHS for name in SETS
}
GROUPS: dict[str, tuple[str, ...]] = {
    "lveval": tuple(TASKS),
    **{f"lveval-{length}": _names(length) for length in LENGTHS},
    **{f"lveval-{length}-without-factrecall": _names(length, FACTS) for length in LENGTHS},
}
