"""What the probes share: a document in which facts are hidden, questions about it, answers.

One example is one document with all its questions: they share what is read, and an interval counts
documents, not the questions of one. A question stands behind the document unless a probe asks it
elsewhere; its answer is begun by a prefix, so that small models say it at once.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from allmem.data.builders.phrases import ALL
from allmem.errors import AllMemError
from allmem.evaluation.model import EvaluatedModel, Prompt
from allmem.evaluation.probes.asking import Asked, ask
from allmem.evaluation.probes.cast import Cast
from allmem.evaluation.probes.composing import (
    NoRoomError,
    Plant,
    Sight,
    Tokens,
    compose,
    tokens_of,
)
from allmem.evaluation.probes.filler import Filler, load_filler
from allmem.evaluation.probes.scoring import score_answer
from allmem.evaluation.prompting import make_prompt
from allmem.evaluation.task import Example, Part, Request, Row, Setting, Task

__all__ = [
    "BETWEEN",
    "LENGTHS",
    "Cell",
    "Probe",
    "Question",
    "Script",
    "Sheet",
    "count",
    "measuring_tokenizer",
]

LENGTHS = (4096,)
ANSWERS, QUICK_ANSWERS = 20, 5
"""To every cell."""
FEWEST = 3
"""Documents, since an interval resamples them."""
INTRO = {
    "en": "Answer the question from the text below.",
    "zh": "请根据下面的文字回答问题。",
}
BETWEEN = {"en": " ", "zh": ""}
"""What stands between two sentences."""
THOUGHTS = 4096
"""Tokens for an answer that thoughts come before."""

Cell = dict[str, str | int | float]


@dataclass(frozen=True)
class Question:
    """What is asked about a document."""

    text: str
    answers: tuple[str, ...]
    """All that the answer must hold, in their order."""
    evidence: tuple[str, ...]
    """Sentences of the document that the answer needs."""
    prefix: str = ""
    """How the answer begins."""
    cell: Cell = field(default_factory=dict)
    stale: tuple[str, ...] = ()
    """Former values: wrong answers that are counted apart."""
    rivals: tuple[str, ...] = ()
    """The other answers to choose from."""
    place: Literal["before", "after", "both"] = "after"
    document: int = 0
    """Number of the document that it is about."""
    room: int = 24
    """Tokens for the answer; its prefix leaves nothing else to be said."""


@dataclass(frozen=True)
class Script:
    """What a document shall hold and what is asked about it."""

    plants: Sequence[Plant]
    questions: Sequence[Question]


@dataclass(frozen=True)
class Sheet:
    """Documents and questions, ready to be asked."""

    language: str
    documents: tuple[str, ...]
    questions: tuple[Question, ...]

    def request(self, question: Question, setting: Setting) -> Request:
        """The prompt of a question."""
        parts = [INTRO[self.language], self.documents[question.document]]
        if question.place != "after":
            parts.insert(1, question.text)
        if question.place != "before":
            parts.append(question.text)
        text = "\n\n".join(parts)
        if setting.thinking:
            return Request(text, THOUGHTS)
        return Request(text, question.room, answer_prefix=question.prefix, stop=("\n",))

    def prompt(self, question: Question, model: EvaluatedModel, setting: Setting) -> Prompt:
        """What a model reads; nothing is cut, since lengths are chosen."""
        return make_prompt(self.request(question, setting), model, replace(setting, truncate=None))

    def asked(self, model: EvaluatedModel, setting: Setting, number: int) -> list[Asked]:
        """All its prompts, with the answers to be weighed behind each.

        Args:
            number: which random numbers are drawn.
        """
        lead, between = BETWEEN[self.language], ALL[self.language]
        found = []
        for i, question in enumerate(self.questions):
            weighed = [between.join(question.answers), *question.rivals]
            # Behind the template alone a model that thinks would not answer yet.
            answers = () if setting.thinking else tuple(lead + answer for answer in weighed)
            found.append(Asked(self.prompt(question, model, setting), answers, number + i))
        return found


class Probe(Task):
    """Documents of chosen lengths with facts hidden in them."""

    metric = "exact"
    slow_to_make = True
    languages: tuple[str, ...] = ("en",)
    quick_languages: tuple[str, ...] = ("en",)
    shared: int = 1
    """Answers that one document gives to a cell."""

    @abstractmethod
    def script(self, cast: Cast, cell: Cell, setting: Setting) -> Script:
        """What a document holds, and what is asked."""

    def cells(self, setting: Setting) -> Iterable[Cell]:
        """The kinds of documents; the default is one."""
        return [{}]

    def examples(self, setting: Setting, model: EvaluatedModel) -> Iterator[Example]:
        for language in self.quick_languages if setting.quick else self.languages:
            filler = load_filler(measuring_tokenizer(model), language, setting)
            for length in setting.lengths or LENGTHS:
                for i, cell in enumerate(self.cells(setting)):
                    place: Cell = {"language": language, "length": length, **cell}
                    try:
                        yield from self._documents(place, model, setting, filler)
                    except NoRoomError:
                        # Only the first kind of document has to fit into every length.
                        if i == 0:
                            raise

    def _documents(
        self, cell: Cell, model: EvaluatedModel, setting: Setting, filler: Filler
    ) -> Iterator[Example]:
        for i in range(count(setting, self.shared)):
            name = "-".join(map(str, [*cell.values(), i]))
            sheet = self._sheet(model, setting, filler, cell, name)
            yield self.example(name, sheet, model, setting, filler, cell)

    def answer(
        self, model: EvaluatedModel, examples: Sequence[Example], setting: Setting
    ) -> list[Row]:
        rows = []
        for example in examples:
            asked = example.ask.asked(model, setting, example.number(setting.seed))
            answers = ask(model, asked, setting.sampling)
            longest = max(len(one.prompt.ids or []) for one in asked)
            rows.append({"answers": answers, "prompt_tokens": longest})
        return rows

    def parts(self, row: Row) -> list[Part]:
        pairs = zip(row["reference"]["questions"], row["answers"], strict=True)
        return [
            Part(score_answer(question, answer), {**row["cell"], **question["cell"]})
            for question, answer in pairs
        ]

    def group(self, examples: Sequence[Example], batch: int) -> list[list[Example]]:
        # A document is read by itself: what is done shall be written before the next one.
        return [[example] for example in examples]

    def example(
        self,
        name: str,
        sheet: Sheet,
        model: EvaluatedModel,
        setting: Setting,
        filler: Filler,
        cell: Cell,
    ) -> Example:
        """A sheet as an example, with the measured distance of every fact."""
        sight = Sight.of(model, setting)
        questions = [self._reference(sheet, q, sight, model, setting) for q in sheet.questions]
        reference = {"material": filler.material, "horizon": sight.horizon, "questions": questions}
        return Example(name, sheet, reference, cell)

    def _sheet(
        self, model: EvaluatedModel, setting: Setting, filler: Filler, cell: Cell, name: str
    ) -> Sheet:
        """A document of the cell's length and its questions."""
        language, length = str(cell["language"]), int(cell["length"])
        rng = random.Random(f"{setting.seed} {self.name} {name}")
        cast = Cast(rng, language, filler)
        script = self.script(cast, cell, setting)
        # The longest of the prompts decides about the length, the shortest about distances.
        empty = Sheet(language, ("",), tuple(script.questions))
        sizes = [len(empty.prompt(q, model, setting).ids or []) for q in script.questions]
        longest = script.questions[sizes.index(max(sizes))]

        def measure(document: str) -> Tokens:
            sheet = Sheet(language, (document,), ())
            return tokens_of(model.tokenizer, sheet.prompt(longest, model, setting), setting)

        document = compose(
            filler,
            rng.randrange(len(filler.pieces)),
            script.plants,
            length,
            Sight.of(model, setting),
            measure,
            BETWEEN[language],
            max(sizes) - min(sizes),
        )
        return Sheet(language, (document,), tuple(script.questions))

    def _reference(
        self,
        sheet: Sheet,
        question: Question,
        sight: Sight,
        model: EvaluatedModel,
        setting: Setting,
    ) -> dict[str, Any]:
        """What scoring needs of a question, and where its facts stand."""
        prompt = sheet.prompt(question, model, setting)
        tokens = tokens_of(model.tokenizer, prompt, setting)
        first, distance = tokens.span(question.evidence)
        beyond = sight.hides(first, distance)
        cell = dict(question.cell)
        if sight.horizon and not beyond:
            # No memory is needed for it: it must not be taken for one.
            cell["beyond"] = "no"
        return {
            "answers": list(question.answers),
            "stale": list(question.stale),
            "rivals": list(question.rivals),
            "cell": cell,
            "distance": distance,
            "depth": round(first / len(tokens), 3),
            "beyond": beyond,
        }


def count(setting: Setting, shared: int) -> int:
    """How many documents there are of each kind, each of which gives ``shared`` answers."""
    if setting.limit is not None:
        return -(-setting.limit // shared)
    return max(FEWEST, -(-(QUICK_ANSWERS if setting.quick else ANSWERS) // shared))


def measuring_tokenizer(model: EvaluatedModel) -> Any:
    """The tokenizer of a model, by which lengths are measured.

    Raises:
        AllMemError: if it is not known.
    """
    if model.tokenizer is None:
        raise AllMemError(
            f"{model.label} has no tokenizer here, by which the probes measure their prompts; "
            "name one (--tokenizer)"
        )
    return model.tokenizer
