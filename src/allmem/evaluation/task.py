"""What every task is: examples, how a model is asked about them, and what its answers are worth.

An example is answered once; the raw answer becomes one line of a file. Scores are made from those
lines alone, so that they can be made again, and by other rules, without the model or the data.
"""

from __future__ import annotations

import dataclasses
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from allmem.evaluation.grouping import alike_together
from allmem.evaluation.model import EvaluatedModel
from allmem.evaluation.prompting import make_prompt
from allmem.evaluation.thinking import after_thinking
from allmem.reading import Sampling

__all__ = [
    "Example",
    "FilledTemplate",
    "Part",
    "PromptTask",
    "Request",
    "Row",
    "Setting",
    "Task",
]

Row = dict[str, Any]
"""A line of a file: an example's ``id``, what scoring needs of it, and the raw answer."""


@dataclass(frozen=True)
class Setting:
    """What a user chose for all tasks of a run."""

    data: Path | None = None
    """Folder with the benchmarks' files; ``None`` for the hub."""
    protocol: Literal["official", "paper"] = "official"
    lengths: tuple[int, ...] = ()
    """In tokens, for tasks that are made at a length; empty for a task's own."""
    limit: int | None = None
    """First so many examples of every task (of every cell, where a task makes cells)."""
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    """Of everything that is drawn: tasks that are made up, samples."""
    truncate: int | None = None
    """Longest prompt in tokens; ``None`` for the benchmark's own rule."""
    max_new_tokens: int | None = None
    """In place of the benchmark's own; the paper allows 32,768 (section 4)."""
    thinking: bool = False
    skip_bad_rows: bool = False
    """Go on without rows that cannot be read, which are counted; else they are an error."""
    quick: bool = False
    """The smallest form of a task that still says something."""
    run_code: bool = False
    """Run programs that a model wrote, in a sandbox; else they are stored and not scored."""
    greedy: bool = False
    """The likeliest token is the user's own choice: of tasks too that else sample in their own
    way."""
    beyond: int | None = None
    """Tokens that the facts of a probe are older than; ``None`` for what the model sees."""
    sinks: int | None = None
    """First tokens among which no fact of a probe stands; ``None`` for the model's sinks."""
    chunk: int | None = None
    """Tokens of a chunk where a probe counts in chunks; ``None`` for the model's."""

    def for_all(self, models: Sequence[EvaluatedModel]) -> Self:
        """The same, so that all these models are asked the same: what was left to each of them is
        the largest among them."""

        def largest(chosen: int | None, sizes: Iterable[int]) -> int:
            return max(sizes) if chosen is None else chosen

        return dataclasses.replace(
            self,
            beyond=largest(self.beyond, (model.sees for model in models)),
            sinks=largest(self.sinks, (model.sinks for model in models)),
            chunk=largest(self.chunk, (model.chunk for model in models)),
        )


@dataclass(frozen=True)
class FilledTemplate:
    """A text that is written anew by every ``str`` of it. Its fields may be shared: hundreds of
    prompts about one book hold the book once."""

    template: str
    """In the form of ``str.format``."""
    fields: Mapping[str, str]

    def __str__(self) -> str:
        return self.template.format(**self.fields)


@dataclass(frozen=True)
class Request:
    """A prompt as a benchmark writes it, before it is cut and wrapped for a model."""

    text: str | FilledTemplate
    max_new_tokens: int
    chat: bool = True
    """Whether the model's chat template goes around it, if it has one."""
    system: str | None = None
    answer_prefix: str = ""
    """How the answer begins: read after the template's generation prompt, and no part of the
    prediction."""
    stop: tuple[str, ...] = ()
    ends_at: str = ""
    """A text whose last token ends the answer as the model's own end does; neither of them may be
    the first token of it."""
    longest: int | None = None
    """Tokens to which the benchmark cuts ``text``, in the middle; ``None`` if it does not."""
    joined: bool = False
    """Whether the tokens that are left become text as one, not each half by itself: a character
    that was cut may read otherwise."""
    least_new_tokens: int | None = None
    """What is left of ``max_new_tokens`` where prompt and answer would go beyond the model's reach;
    ``None`` for all of them."""


@dataclass(frozen=True)
class Example:
    """One thing to be answered."""

    id: str
    """Unique in its task, and the same in every run."""
    ask: Any
    """What ``Task.answer`` needs; a ``Request`` for a ``PromptTask``."""
    reference: Mapping[str, Any] = field(default_factory=dict)
    """What ``Task.parts`` needs, JSON-able; it is stored in the row."""
    cell: Mapping[str, str | int | float] = field(default_factory=dict)
    """Where it belongs in the task's table: length, depth, language ...; it is stored too."""

    def number(self, seed: int) -> int:
        """Which random numbers it draws."""
        return int.from_bytes(hashlib.sha256(f"{seed} {self.id}".encode()).digest()[:6], "big")


@dataclass(frozen=True)
class Part:
    """What an answer, or a part of it, is worth."""

    scores: Mapping[str, float]
    """By metric."""
    cell: Mapping[str, str | int | float] = field(default_factory=dict)
    weight: float = 1.0
    """In means: of tokens, say."""


class Task(ABC):
    """A set of examples."""

    name: str
    """``suite/set``."""
    metric: str
    """The score that is reported first; one of those in ``Part.scores``."""
    scale: float = 100.0
    """By which scores are multiplied in reports."""
    higher_is_better: bool = True
    needs: tuple[Literal["likelihoods", "session"], ...] = ()
    """What it asks of a model besides answers: methods of ``EvaluatedModel``."""

    slow_to_make: bool = False
    """Whether its examples take long to make, as where each is fitted to a length in tokens."""

    def refuses(self, model: EvaluatedModel) -> str | None:
        """Why this model cannot be asked; ``None`` if it can. Such a pair is left out of a run,
        with a note."""
        for need in self.needs:
            if getattr(type(model), need) is getattr(EvaluatedModel, need):
                return f"it asks for more than answers ({need}), which only a model loaded here has"
        return None

    @abstractmethod
    def examples(self, setting: Setting, model: EvaluatedModel) -> Iterable[Example]:
        """The examples, in an order that is always the same.

        Raises:
            AllMemError: if data is missing, saying which file and where it can be had.
        """

    @abstractmethod
    def answer(
        self, model: EvaluatedModel, examples: Sequence[Example], setting: Setting
    ) -> list[Row]:
        """The raw answers, JSON-able; the runner adds ``id``, ``reference`` and ``cell``."""

    @abstractmethod
    def parts(self, row: Row) -> list[Part]:
        """What a stored answer is worth."""

    def settle(self, path: Path, examples: Sequence[Example], setting: Setting) -> None:
        """What is left to do once all examples are answered; nothing, as a rule.

        Args:
            path: of the file of rows.
            examples: all of them.
        """
        return

    def group(self, examples: Sequence[Example], batch: int) -> list[list[Example]]:
        """Batches of examples; the default takes them as they come."""
        return [list(examples[i : i + batch]) for i in range(0, len(examples), batch)]


class PromptTask(Task):
    """A task whose examples are prompts, and whose answers are texts. What a model thought aloud
    before an answer is kept in its row and does not count."""

    def answer(
        self, model: EvaluatedModel, examples: Sequence[Example], setting: Setting
    ) -> list[Row]:
        requests = [example.ask for example in examples]
        if setting.thinking:
            # A thought may hold what ends an answer.
            requests = [dataclasses.replace(request, ends_at="") for request in requests]
        prompts = [make_prompt(request, model, setting) for request in requests]
        numbers = [example.number(setting.seed) for example in examples]
        completions = model.complete(prompts, setting.sampling, numbers)
        return [
            {
                "prediction": completion.text,
                "prompt_tokens": completion.prompt_tokens,
                "cut": prompt.cut,
                "new_tokens": completion.new_tokens,
                "finished": completion.finished,
            }
            for prompt, completion in zip(prompts, completions, strict=True)
        ]

    def group(self, examples: Sequence[Example], batch: int) -> list[list[Example]]:
        order = alike_together([example.ask.text for example in examples])
        return super().group([examples[i] for i in order], batch)

    def parts(self, row: Row) -> list[Part]:
        answer = after_thinking(row["prediction"])
        return [Part(self.score(answer, row["reference"]), row["cell"])]

    @abstractmethod
    def score(self, prediction: str, reference: Mapping[str, Any]) -> dict[str, float]:
        """What an answer is worth, by metric, between 0 and 1."""
