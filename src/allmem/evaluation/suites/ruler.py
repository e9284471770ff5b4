"""RULER: needles, chains of variables, counted words and questions, made up for any tokenizer at
any length (NVIDIA/RULER, arXiv:2404.06654).

Templates, parameters and scores are RULER's own. What differs from its scripts:

- every sample has its own random numbers, so that neither a limit nor an order changes it, and is
  fitted to the length by itself (``ruler_tasks.fitting``);
- the model's own chat template goes around the prompt, and its tokens count; the worked example of
  ``cwe`` stands within it, as that of ``vt`` does;
- without the user's files a novel takes the place of the essays, and a row's ``material`` says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from allmem.errors import AllMemError
from allmem.evaluation.benchmarks import benchmark
from allmem.evaluation.metrics.ruler import string_match_all, string_match_part
from allmem.evaluation.model import EvaluatedModel
from allmem.evaluation.prompting import make_prompt
from allmem.evaluation.suites.ruler_tasks.common_words import CommonWords
from allmem.evaluation.suites.ruler_tasks.fitting import Fitter
from allmem.evaluation.suites.ruler_tasks.frequent_words import FrequentWords
from allmem.evaluation.suites.ruler_tasks.haystacks import open_haystack
from allmem.evaluation.suites.ruler_tasks.niah import Needles
from allmem.evaluation.suites.ruler_tasks.question_answering import QuestionAnswering
from allmem.evaluation.suites.ruler_tasks.questions import read_questions
from allmem.evaluation.suites.ruler_tasks.sample import Draw, Generator, Sample
from allmem.evaluation.suites.ruler_tasks.variable_tracking import VariableTracking
from allmem.evaluation.task import Example, PromptTask, Request, Setting, Task

__all__ = ["GROUPS", "TASKS", "RulerTask"]

LENGTHS = (4096,)
SAMPLES, QUICK_SAMPLES = 500, 3
"""At each length (``NUM_SAMPLES`` of RULER's ``config_tasks.sh``)."""


class RulerTask(PromptTask):
    """A task of RULER, generated at each length."""

    slow_to_make = True

    def __init__(self, name: str) -> None:
        definition = benchmark("ruler")["tasks"][name]
        self.name = f"ruler/{name}"
        self.kind: str = definition["task"]
        self.arguments: dict[str, Any] = definition["args"]
        self.new_tokens: int = benchmark("ruler")["templates"][self.kind]["tokens_to_generate"]
        self.metric = "string_match_part" if self.kind == "qa" else "string_match_all"

    def examples(self, setting: Setting, model: EvaluatedModel) -> Iterable[Example]:
        if model.tokenizer is None:
            raise AllMemError(
                f"{self.name} is made to a length in the model's tokens, and {model.label} has no "
                "tokenizer here; name one"
            )
        generator = self._generator(setting, model.tokenizer)
        for length in setting.lengths or LENGTHS:
            yield from self._at_length(length, generator, setting, model)

    def score(self, prediction: str, reference: Mapping[str, Any]) -> dict[str, float]:
        match = string_match_part if self.kind == "qa" else string_match_all
        return {self.metric: match(prediction, reference["answers"])}

    def _generator(self, setting: Setting, tokenizer: Any) -> Generator:
        values = dict(self.arguments)
        match self.kind:
            case "niah":
                haystack = open_haystack(values.pop("type_haystack"), setting.data)
                return Needles(haystack=haystack, **values)
            case "variable_tracking":
                # Noise, for the one task that RULER has.
                values.pop("type_haystack")
                return VariableTracking(**values, tokens=partial(_tokens, tokenizer))
            case "common_words_extraction":
                return CommonWords(**values, data=setting.data)
            case "freq_words_extraction":
                return FrequentWords(**values)
            case _:
                return QuestionAnswering(read_questions(setting, values["dataset"]))

    def _at_length(
        self, length: int, generator: Generator, setting: Setting, model: EvaluatedModel
    ) -> Iterator[Example]:
        # The prompt is measured as it would be read, were nothing cut.
        uncut = dataclasses.replace(setting, truncate=None)

        def tokens(sample: Sample) -> int:
            ids = make_prompt(self._request(sample), model, uncut).ids
            assert ids is not None
            return len(ids)

        fitter = Fitter(generator, tokens, length - self.new_tokens)
        place = f"{setting.seed} {self.name} {length}"
        # Of the first sample's form, but with numbers that no sample draws.
        size, slope = fitter.estimate(Draw(0, length, f"{place} size"))
        wanted = SAMPLES if setting.limit is None else setting.limit
        if setting.quick:
            wanted = min(wanted, QUICK_SAMPLES)
        made = 0
        for index in range(generator.samples() or wanted):
            if made == wanted:
                break
            fitted = fitter.fit(Draw(index, length, f"{place} {index}"), size, slope)
            # A question whose own documents are too long makes room for the next.
            if fitted is not None:
                made += 1
                yield self._example(f"{length}/{index}", length, *fitted, model.tokenizer)
        if not made and wanted:
            raise AllMemError(
                f"{self.name} does not fit into {length} tokens; ask for a longer one (--lengths)"
            )

    def _request(self, sample: Sample) -> Request:
        return Request(sample.text, self.new_tokens, answer_prefix=sample.answer_prefix)

    def _example(
        self, name: str, length: int, sample: Sample, tokens: int, tokenizer: Any
    ) -> Example:
        reference: dict[str, Any] = {
            "answers": list(sample.answers),
            "material": sample.material,
            "tokens": tokens,
        }
        cell: dict[str, int] = {"length": length}
        distances = _distances(sample, tokenizer)
        if distances:
            reference |= {"distance": min(distances), "distances": distances}
        if len(distances) == 1:
            cell["depth"] = min(10 * int(10 * (1 - distances[0] / tokens)), 90)
        return Example(name, self._request(sample), reference, cell)


def _tokens(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def _distances(sample: Sample, tokenizer: Any) -> list[int]:
    """How many tokens of the prompt come after each piece of evidence.

    The text behind it is tokenised by itself, and the few tokens of the chat template behind it are
    not counted: so a fact is at least as old as that.
    """
    ends = [sample.text.rindex(piece) + len(piece) for piece in sample.evidence]
    after, last, behind = _tokens(tokenizer, sample.answer_prefix), len(sample.text), {}
    for end in sorted(set(ends), reverse=True):
        after += _tokens(tokenizer, sample.text[end:last])
        behind[end], last = after, end
    return [behind[end] for end in ends]


TASKS: dict[str, Callable[[], Task]] = {
    f"ruler/{name}": partial(RulerTask, name) for name in benchmark("ruler")["tasks"]
}
GROUPS: dict[str, tuple[str, ...]] = {
    "ruler": tuple(TASKS),
    "ruler_generated": tuple(name for name in TASKS if not name.startswith("ruler/qa_")),
}
