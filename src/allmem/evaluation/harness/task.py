"""A task of lm-eval's as one of ours: its requests go to our models, its rules score our rows.

A row keeps the document and the raw answers, from which lm-eval's own filters and metrics make the
scores whenever they are asked for. Under the paper's protocol answers that are generated are asked
for in the model's chat template, sampled as the user says; lm-eval's default is neither.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from allmem.errors import AllMemError
from allmem.evaluation.harness.asking import compare, generate, requests_of
from allmem.evaluation.harness.definitions import Definition, Rows, library_tasks
from allmem.evaluation.harness.lmeval import characters_of, draws, load_task
from allmem.evaluation.model import EvaluatedModel
from allmem.evaluation.prompting import check_can_cut
from allmem.evaluation.task import Example, Part, Row, Setting, Task

__all__ = ["HarnessTask"]

Document = dict[str, Any]

ORDER_SEED = 0
"""What lm-eval seeds Python's random numbers with; GPQA's choices are shuffled with them."""
SCORE_SEED = "allmem 743"
"""For scores that draw at random. IFEval's checker draws a letter, without a seed, where the letter
to be counted is ``#`` or ``!`` (two prompts of 541), so any draw is an official one; with this seed
they are those of the official scores that the tests compare with."""


class HarnessTask(Task):
    """A task that lm-eval defines.

    Args:
        name: of the task here.
        metric: that is reported first.
        rows: where its rows are.
        official: the task in lm-eval.
        paper: another for the paper's protocol.
        prepare: sees to what scoring needs; told whether it may be downloaded.
    """

    def __init__(
        self,
        name: str,
        metric: str,
        rows: Rows,
        official: Definition,
        paper: Definition | None = None,
        prepare: Callable[[bool], None] | None = None,
    ) -> None:
        self.name = name
        self.metric = metric
        self.rows = rows
        self.definitions = {"official": official, "paper": paper or official}
        self.prepare = prepare
        self._scorers: dict[str, Any] = {}

    def examples(self, setting: Setting, model: EvaluatedModel) -> Iterable[Example]:
        if self.prepare is not None:
            self.prepare(setting.data is None)
        definition = self.definitions[setting.protocol]
        # A greedy answer is the same every time.
        samples = definition.samples if setting.sampling.temperature > 0 else 1
        found = 0
        for subject, library_task in library_tasks(definition, self.rows, setting):
            chat = _chats(library_task, setting, model)
            if library_task.OUTPUT_TYPE != "generate_until" and model.tokenizer is None:
                raise AllMemError(
                    f"{self.name} compares how likely answers are, which needs a model that is "
                    f"loaded here; {model.label} only answers"
                )
            if library_task.OUTPUT_TYPE == "generate_until":
                check_can_cut(model, setting.truncate or model.reach)
            for number, document in _documents(library_task, setting.limit):
                found += 1
                name = f"{subject}/{number}" if subject else str(number)
                ask = requests_of(library_task, document, chat)
                reference = {
                    "task": library_task.config.task,
                    "document": {key: _small(document[key]) for key in definition.keep},
                }
                cell = {"subject": subject} if subject else {}
                for sample in range(samples):
                    id_ = f"{name}#{sample}" if samples > 1 else name
                    yield Example(id_, ask, reference, cell)
        if not found:
            raise AllMemError(f"{self.name}: there is not one row that can be asked")

    def group(self, examples: Sequence[Example], batch: int) -> list[list[Example]]:
        """Batches of texts of like length, the longest first, for less padding."""
        return super().group(sorted(examples, key=_length, reverse=True), batch)

    def answer(
        self, model: EvaluatedModel, examples: Sequence[Example], setting: Setting
    ) -> list[Row]:
        if examples[0].ask[0][0] == "loglikelihood":
            return compare(model, examples, setting)
        rows = generate(model, examples, setting)
        for example, row in zip(examples, rows, strict=True):
            _, several, sample = example.id.rpartition("#")
            if several:
                row["sample"] = int(sample)
        return rows

    def parts(self, row: Row) -> list[Part]:
        """One for the whole answer; one more for each of its parts, where lm-eval scores parts (the
        instructions of IFEval)."""
        if self.prepare is not None:
            self.prepare(False)
        name, document = row["reference"]["task"], row["reference"]["document"]
        definition = next(d for d in self.definitions.values() if d.knows(name))
        if name not in self._scorers:
            # The document is as lm-eval made it already.
            own = load_task(definition.folder, name, [document], process_docs=None)
            self._scorers[name] = own
        answers = [tuple(a) for a in row["answers"]] if "answers" in row else [row["prediction"]]
        scores = {
            definition.names.get(metric, metric): value
            for metric, value in _scores(self._scorers[name], document, answers).items()
        }
        whole = {key: float(value) for key, value in scores.items() if not isinstance(value, list)}
        items = {key: value for key, value in scores.items() if isinstance(value, list)}
        single = [
            Part({key: float(v) for key, v in zip(items, values, strict=True)}, row["cell"])
            for values in zip(*items.values(), strict=True)
        ]
        return [Part(whole, row["cell"]), *single]


def _chats(library_task: Any, setting: Setting, model: EvaluatedModel) -> bool:
    if setting.protocol != "paper" or library_task.OUTPUT_TYPE != "generate_until":
        return False
    return model.tokenizer is None or bool(model.tokenizer.chat_template)


def _documents(library_task: Any, limit: int | None) -> Iterator[tuple[int, Document]]:
    with draws(ORDER_SEED):
        documents = library_task.eval_docs
    for number in range(len(documents) if limit is None else min(limit, len(documents))):
        yield number, documents[number]


def _length(example: Example) -> int:
    return max(len(str(context)) + len(str(then)) for _, context, then in example.ask)


def _scores(scorer: Any, document: Document, answers: Sequence[Any]) -> dict[str, Any]:
    """What lm-eval makes of raw answers, by metric, and by filter too where there are several."""
    from lm_eval.api.instance import Instance

    instances = [
        Instance(scorer.OUTPUT_TYPE, document, (), number, (scorer.config.task, 0, 1), [answer])
        for number, answer in enumerate(answers)
    ]
    scorer._instances = instances
    texts = [str(answers), str(document)]
    with draws(f"{SCORE_SEED} {json.dumps(answers)}"), characters_of(texts):
        scorer.apply_filters()
        by_filter = {
            name: scorer.process_results(document, [one.filtered_resps[name] for one in instances])
            for name in instances[0].filtered_resps
        }
    if len(by_filter) == 1:
        return dict(next(iter(by_filter.values())))
    return {
        f"{metric},{name}": value
        for name, scores in by_filter.items()
        for metric, value in scores.items()
    }


def _small(value: Any) -> Any:
    """A value without what is not said: the hub gives every instruction the arguments of all."""
    if isinstance(value, Mapping):
        return {key: _small(kept) for key, kept in value.items() if kept is not None}
    if isinstance(value, (list, tuple)):
        return [_small(kept) for kept in value]
    return value
