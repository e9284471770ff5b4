"""The steps of the demo, one method each: they compute and measure, print and write nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from allmem.answering import Reader
from allmem.data import Sequences
from allmem.demo.books import Question, is_right
from allmem.demo.examiner import Examiner
from allmem.demo.original import OriginalReader
from allmem.demo.settings import DemoSettings
from allmem.distill import Comparison, Outcome, Step, TextRows, compare, distill
from allmem.distill.rows import held_out_rows
from allmem.models.adapter import adapter_note, load_adapter, trained_tokens
from allmem.models.conversion import convert
from allmem.models.variants import without_memory
from allmem.opening import OpenedModel
from allmem.prompts import DocumentPrompt, plain_ids
from allmem.reading import Progress, Sampling, read

__all__ = ["Answer", "Converted", "Demo", "Point", "Shipped"]

Report = Callable[[Progress], None]


@dataclass(frozen=True)
class Converted:
    """What the conversion did, measured."""

    parameters: int
    """Of the base."""
    added: int
    """Slow weights of the memories."""
    step_zero: float
    """Largest difference of logits to the model with the window alone."""
    within_window: float
    """Difference to the original model on the first S + W tokens, as a share of the logits' norm:
    rounding."""


@dataclass(frozen=True)
class Shipped:
    """The memory that comes with allmem."""

    parameters: int
    """Of the base."""
    added: int
    """Slow weights of the memories."""
    layers: int
    """That have one."""
    tokens: int | None
    """That it was trained on, as its file says."""


@dataclass(frozen=True)
class Point:
    """A reading at one position."""

    position: int
    seconds_per_token: float
    """In the block that ends here; in the last two, if it is cut short by the text's end."""
    state_bytes: int


@dataclass(frozen=True)
class Answer:
    """What a model said to a question."""

    question: Question
    text: str

    @property
    def right(self) -> bool:
        return is_right(self.text, self.question.answer)


class Demo:
    """One run.

    Args:
        load: makes the base model; called twice, since conversion is in place.
        tokenizer: of the base model.
        learned, book: the texts to learn from, and to read and be asked about.
        adapter: of the memory that ships (``find_adapter``); ``None`` where one is distilled.
    """

    def __init__(
        self,
        load: Callable[[], PreTrainedModel],
        tokenizer: Any,
        learned: str,
        book: str,
        questions: list[Question],
        settings: DemoSettings,
        adapter: str | Path | None = None,
    ) -> None:
        self.load = load
        self.tokenizer = tokenizer
        self.learned, self.book, self.questions = learned, book, questions
        self.settings, self.adapter = settings, adapter
        self.prompt = DocumentPrompt(tokenizer)
        self.points: dict[str, list[Point]] = {}
        """Measured readings, by the model's name."""

    def open_shipped(self) -> Shipped:
        """Put the memory that ships beside the base model."""
        assert self.adapter is not None
        base = self.load()
        parameters = sum(p.numel() for p in base.parameters())
        # Kept for every later step.
        self.model = load_adapter(base, self.adapter, window=self.settings.shipped_window)
        return Shipped(
            parameters=parameters,
            added=sum(p.numel() for p in self.model.memory_parameters().values()),
            layers=sum(mixed.memory is not None for mixed in self.model.mixers()),
            tokens=trained_tokens(adapter_note(self.adapter)),
        )

    def convert(self) -> Converted:
        """Convert the model; compare it with what it should be before it has learned anything."""
        settings = self.settings
        base = self.load()
        parameters = sum(p.numel() for p in base.parameters())
        # Kept for every later step.
        self.model = convert(
            base,
            window=settings.window,
            sinks=settings.sinks,
            chunk=settings.chunk,
            mixers=settings.mixers(base.config.num_hidden_layers),
            memory=settings.memory,
        )
        ids = self._ids(self.learned[:20_000])[None, : settings.length]
        with torch.no_grad():
            student = self.model(ids, use_cache=False).logits.float()
            with without_memory(self.model):
                window = self.model(ids, use_cache=False).logits.float()
            teacher = self.model(ids, full_attention=True).logits.float()
        seen = settings.sinks + settings.window
        return Converted(
            parameters=parameters,
            added=sum(p.numel() for p in self.model.memory_parameters().values()),
            step_zero=float((student - window).abs().max()),
            within_window=float((student - teacher)[:, :seen].norm() / teacher[:, :seen].norm()),
        )

    def distil(
        self,
        on_step: Callable[[Step], None] | None = None,
        on_compared: Callable[[str, Comparison], None] | None = None,
    ) -> Outcome:
        """Distil the memories on one book, judged on its end, which they did not see."""
        ids = self._ids(self.learned)
        cut = int(len(ids) * (1 - self.settings.held_out))
        settings = self.settings
        rows = TextRows(Sequences([ids[:cut]], settings.length, settings.seed))
        return distill(
            self.model,
            rows,
            held_out_rows(ids[cut:], settings.length, settings.evaluated),
            settings.distillation(),
            on_step=on_step,
            on_compared=on_compared,
        )

    def compare_other(self) -> Comparison:
        """The same figures on the other book, which is by another author."""
        settings = self.settings
        held_out = held_out_rows(self._ids(self.book), settings.length, settings.evaluated)
        return compare(self.model, held_out, control=True)

    def examiner(self) -> Examiner:
        """Who asks, after ``open_shipped`` or ``convert``."""
        original = OriginalReader(self.load())
        return Examiner(self.model, original, self.tokenizer, self.settings)

    def read(self, report: Report | None = None) -> list[Point]:
        """Read the whole book into the memory."""
        opened = OpenedModel(self.model, self.tokenizer)
        self.reader = Reader(opened, self.prompt)
        meter = _Meter(report)
        ids = self.prompt.document(self.book)
        read(self.model, ids, self.reader.cache, report=meter, block=self.settings.block)
        self.points["AllMem"] = meter.points
        return meter.points

    def answers(self) -> list[Answer]:
        """Ask every question of the same memory of the whole book."""
        limit = self.settings.answer_tokens
        return [
            Answer(q, "".join(self.reader.answer(q.question, limit, Sampling())).strip())
            for q in self.questions
        ]

    def read_original(self, report: Report | None = None) -> list[Point]:
        """Let the original model read as much of the book as it was trained for."""
        self.original = OriginalReader(self.load())
        ids = self.prompt.document(self.book)[: self.settings.full_tokens]
        meter = _Meter(report)
        self.original.read(ids, self.settings.block, meter)
        self.points["full attention"] = meter.points
        return meter.points

    def original_answers(self) -> list[Answer]:
        """Ask the original model what it has read the answer to."""
        limit = self.settings.answer_tokens
        return [
            Answer(
                q,
                self.original.answer(self.tokenizer, self.prompt.question(q.question), limit),
            )
            for q in self.questions
            if self._tokens_before(q) < len(self.original.ids)
        ]

    def _tokens_before(self, question: Question) -> int:
        """Tokens up to the end of the passage that answers a question, and a little more."""
        end = question.offset + 200
        return len(self.prompt.document(self.book[:end]))

    def _ids(self, text: str) -> Tensor:
        return torch.tensor(plain_ids(self.tokenizer, text), dtype=torch.int64)


class _Meter:
    """Turns reports of a reading into points, and passes them on."""

    def __init__(self, report: Report | None) -> None:
        self.report = report
        self.points: list[Point] = []
        self.marks = [(0, 0.0)]
        """(tokens, seconds) at the end of every block."""

    def __call__(self, progress: Progress) -> None:
        marks = self.marks
        # A few tokens alone would show the cost of a call.
        short = len(marks) > 1 and progress.tokens - marks[-1][0] < marks[-1][0] - marks[-2][0]
        tokens, seconds = marks[-2 if short else -1]
        pace = (progress.seconds - seconds) / max(progress.tokens - tokens, 1)
        self.points.append(Point(progress.tokens, pace, progress.state_bytes))
        marks.append((progress.tokens, progress.seconds))
        if self.report is not None:
            self.report(progress)
