"""InfiniteBench: 12 sets of tasks over texts of 100k tokens and more.

Prompts, lengths of answers, cut and metrics are those of OpenBMB/InfiniteBench at commit 88b3daa6
(``src/prompt.py``, ``eval_utils.py``, ``eval_yarn_mistral.py``, ``compute_scores.py``). Its prompts
for open models are continued as they stand; those for GPT-4 are conversations, in tasks whose names
end in ``_chat``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from allmem.evaluation.benchmarks import benchmark
from allmem.evaluation.fields import Values, wrong_texts
from allmem.evaluation.metrics.infinitebench import METRICS
from allmem.evaluation.model import EvaluatedModel
from allmem.evaluation.sources import Source
from allmem.evaluation.suites.row_task import RowTask, longest_prompt
from allmem.evaluation.task import FilledTemplate, Request, Task

__all__ = ["GROUPS", "TASKS", "InfiniteBench"]

SETS: dict[str, dict[str, Any]] = benchmark("infinitebench")["sets"]
MAIN = ("longbook_qa_eng", "longbook_qa_chn", "passkey", "number_string", "kv_retrieval")
BOOKS = ("longbook_qa_eng", "longbook_qa_chn")
NO_CHAT = ("math_calc",)
"""Sets whose prompt for GPT-4 is a conversation of several turns, with a score of its own."""
OPTIONS = ("longbook_choice_eng", "code_debug")
NO_INPUT = ("longbook_sum_eng", "longdialogue_qa_eng", "math_calc", "code_debug")
"""Sets of one question, which is in the prompt."""
LETTERS = "ABCD"
TEXT_LABELS = (*MAIN, *OPTIONS, "longbook_sum_eng", "longdialogue_qa_eng")

LONGEST = 128 * 1024
"""``TRUNCATE_LEN`` for open models."""
LONGEST_CHAT = 128_000 - 1000
SYSTEM = "You are a helpful assistant"

CALL = re.compile(r"func_[0-9]+\(\-?[0-9]+\)")
TARGET = re.compile(r"The .+ of")


class InfiniteBench(RowTask):
    """A set of InfiniteBench.

    Args:
        name: of the set.
        chat: with the prompts for GPT-4.
    """

    def __init__(self, name: str, chat: bool = False) -> None:
        self.set = name
        self.chat = chat
        self.rules = SETS[name]
        source = Source("infinitebench", name, "xinrongzhang2022/InfiniteBench", f"{name}.jsonl")
        task = f"infinitebench/{name}_chat" if chat else f"infinitebench/{name}"
        super().__init__(task, source, METRICS[name][0])

    def problem(self, values: Values) -> str | None:
        named = ("context",) if self.set in NO_INPUT else ("context", "input")
        problem = wrong_texts(values, named) or self._wrong_answer(values)
        if problem is None and self.set == "code_run" and not CALL.search(values["input"]):
            problem = f"no function call in its input {values['input'][:60]!r}"
        if problem is None and self.set == "math_find" and not TARGET.search(values["input"]):
            problem = f"no number is asked for in its input {values['input'][:60]!r}"
        return problem

    def _wrong_answer(self, values: Values) -> str | None:
        if "answer" not in values:
            return "the field 'answer' is missing"
        label = _as_list(values["answer"])
        if not label or any(isinstance(answer, str) and not answer.strip() for answer in label):
            return "the field 'answer' is empty"
        kind = str if self.set in TEXT_LABELS else (int, float, list)
        if not all(isinstance(answer, kind) for answer in label):
            return f"the field 'answer' is {str(values['answer'])[:60]!r}, of the wrong type"
        if self.set not in OPTIONS:
            return None
        options = values.get("options")
        if not isinstance(options, list) or len(options) != len(LETTERS):
            return f"the field 'options' is {str(options)[:60]!r}, not a list of four"
        if label[0] not in options:
            return f"its answer {label[0]!r} is not among its options"
        return None

    def request(self, values: Values, model: EvaluatedModel) -> Request:
        template = self.rules["chat_prompt" if self.chat else "prompt"]
        longest = LONGEST_CHAT if self.chat else LONGEST
        if model.reach is not None and model.reach < LONGEST:
            # What it was not made for has no official cut; LongBench's leaves room for an answer.
            longest = min(longest, longest_prompt(model.reach) or longest)
        return Request(
            text=FilledTemplate(template, self._fields(values)),
            max_new_tokens=self.rules["max_new_tokens"],
            chat=self.chat,
            system=SYSTEM if self.chat else None,
            longest=longest,
            joined=True,
        )

    def _fields(self, values: Values) -> dict[str, str]:
        """What a prompt may name."""
        fields = {"context": values["context"], "input": values.get("input", "")}
        fields["question"] = fields["input"]
        if self.set in OPTIONS:
            fields |= {f"OPTION_{key}": values["options"][i] for i, key in enumerate(LETTERS)}
        if self.set == "code_run":
            call = CALL.findall(fields["input"])[0]
            fields |= {"func_call": call, "func": call.split("(")[0]}
        if self.set == "math_find":
            target = TARGET.findall(fields["input"])[0].lower()[:-3]
            fields["prefix"] = f"What is {target} in the following list?"
        return fields

    def reference(self, values: Values) -> dict[str, Any]:
        label = _as_list(values["answer"])
        if self.set in OPTIONS and len(label) == 1:
            label = [label[0], LETTERS[values["options"].index(label[0])]]
        return {"answer": label}

    def score(self, prediction: str, reference: Mapping[str, Any]) -> dict[str, float]:
        return {self.metric: METRICS[self.set][1](prediction, reference["answer"])}


def _as_list(answer: Any) -> list[Any]:
    return answer if isinstance(answer, list) else [answer]


WITH_CHAT = tuple(name for name in SETS if name not in NO_CHAT)
TASKS: dict[str, Callable[[], Task]] = {
    **{f"infinitebench/{name}": partial(InfiniteBench, name) for name in SETS},
    **{f"infinitebench/{name}_chat": partial(InfiniteBench, name, True) for name in WITH_CHAT},
}
GROUPS: dict[str, tuple[str, ...]] = {
    "infinitebench": tuple(f"infinitebench/{name}" for name in MAIN),
    "infinitebench-paper": tuple(f"infinitebench/{name}" for name in BOOKS),
    "infinitebench-all": tuple(f"infinitebench/{name}" for name in SETS),
    "infinitebench-chat": tuple(f"infinitebench/{name}_chat" for name in MAIN),
}
