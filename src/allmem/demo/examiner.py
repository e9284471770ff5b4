"""Who asks about what the window has lost: facts that pages of a novel hide, passages of a book.

Every reader answers freely, by the likeliest token, from what it has after the document.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from allmem.answering import Reader
from allmem.data.interviews import Interviewer, Interviews
from allmem.demo.books import Question, is_right
from allmem.demo.original import OriginalReader
from allmem.demo.settings import DemoSettings
from allmem.models.modeling import AllMemForCausalLM
from allmem.models.variants import without_memory, without_writing
from allmem.opening import OpenedModel
from allmem.prompts import DocumentPrompt
from allmem.reading import Sampling, read

__all__ = ["MEMORY", "ORIGINAL", "UNWRITTEN", "WINDOW", "Examiner", "Recalled"]

ORIGINAL, WINDOW, MEMORY, UNWRITTEN = (
    "full attention",
    "window alone",
    "window and memory",
    "memory never written",
)
"""The readers."""

Says = Callable[[str, Sequence[str]], list[str]]
"""From a document and questions about it to answers."""


@dataclass(frozen=True)
class Recalled:
    """What the readers say to one question."""

    question: str
    answer: str
    said: dict[str, str]
    """By the reader's name."""

    def right(self, reader: str) -> bool:
        """Whether it says all words of the answer."""
        return is_right(self.said[reader], self.answer)


class Examiner:
    """Asks.

    Args:
        model: with a memory.
        original: the same model with full attention.
    """

    def __init__(
        self,
        model: AllMemForCausalLM,
        original: OriginalReader,
        tokenizer: Any,
        settings: DemoSettings,
    ) -> None:
        self.model, self.original, self.tokenizer = model, original, tokenizer
        self.settings = settings
        self.prompt = DocumentPrompt(tokenizer)

    def hidden_facts(self) -> list[Recalled]:
        """Facts about people that no memory was trained on, each behind a window's length of prose,
        the last two windows before the end of the document."""
        settings, window = self.settings, self.model.config.window
        chosen = Interviews((settings.facts,), (window,), (2 * window,))
        writer = Interviewer(chosen, self.tokenizer, window, settings.seed, held_out=True)
        found = []
        for number in range(settings.documents):
            document, facts = writer.interview(number)
            found += self._ask(document, [(fact.asks, fact.value) for fact in facts])
        return found

    def passages(self, book: str, questions: Sequence[Question]) -> list[Recalled]:
        """Every question about a book right after its own passage."""
        return [
            recalled
            for q in questions
            for recalled in self._ask(
                q.passage(book, self.settings.passage), [(q.question, q.answer)]
            )
        ]

    def _ask(self, document: str, asked: Sequence[tuple[str, str]]) -> list[Recalled]:
        questions = [question for question, _ in asked]
        said = {name: says(document, questions) for name, says in self._readers()}
        return [
            Recalled(question, answer, {name: said[name][i] for name in said})
            for i, (question, answer) in enumerate(asked)
        ]

    def _readers(self) -> Iterator[tuple[str, Says]]:
        """Each as its turn comes: three of them are the same model, changed meanwhile."""
        yield ORIGINAL, self._original_says
        changes: dict[str, contextlib.AbstractContextManager[None]] = {
            WINDOW: without_memory(self.model),
            MEMORY: contextlib.nullcontext(),
            UNWRITTEN: without_writing(self.model),
        }
        for name, changed in changes.items():
            with changed:
                yield name, self._says

    def _says(self, document: str, questions: Sequence[str]) -> list[str]:
        reader = Reader(OpenedModel(self.model, self.tokenizer), self.prompt)
        read(self.model, self.prompt.document(document), reader.cache)
        limit = self.settings.answer_tokens
        return ["".join(reader.answer(q, limit, Sampling())).strip() for q in questions]

    def _original_says(self, document: str, questions: Sequence[str]) -> list[str]:
        original, limit = self.original, self.settings.answer_tokens
        original.forget()
        original.read(self.prompt.document(document), self.settings.block)
        return [original.answer(self.tokenizer, self.prompt.question(q), limit) for q in questions]
