"""What the commands do with an opened model: continue a text, answer about a document, hold a
conversation. Each is one sequence and one ``AllMemCache``; texts come as streams of pieces.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

from allmem.errors import AllMemError
from allmem.models.cache import AllMemCache
from allmem.opening import OpenedModel
from allmem.prompts import ChatPrompts, DocumentPrompt, start_ids
from allmem.reading import Progress, Sampling, pieces_of_text, read, stop_ids, until, write

__all__ = ["Conversation", "Reader", "continue_text"]

Report = Callable[[Progress], None]


def _warn_if_silent(opened: OpenedModel, tokens: int) -> None:
    if tokens > opened.sees and opened.memory_is_silent:
        warnings.warn(
            f"the memory is untrained and adds nothing: of {tokens} tokens only the window and the "
            f"sinks ({opened.sees}) are seen; train it, or load an adapter",
            stacklevel=2,
        )


def continue_text(
    opened: OpenedModel,
    text: str,
    max_new_tokens: int,
    sampling: Sampling,
    report: Report | None = None,
) -> Iterator[str]:
    """Read a text now; its continuation comes piece by piece.

    Raises:
        AllMemError: if the text is empty.
    """
    model, tokenizer = opened.model, opened.tokenizer
    if not text:
        raise AllMemError("the prompt is empty; give some text to continue")
    # A prompt may hold control tokens on purpose: it is the whole input, as it stands.
    body = tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = start_ids(tokenizer) + body
    _warn_if_silent(opened, len(ids))
    cache = opened.new_cache()
    logits = read(model, ids, cache, report=report)
    tokens = write(
        model,
        cache,
        logits,
        max_new_tokens=max_new_tokens,
        stop=stop_ids(model, tokenizer),
        sampling=sampling,
    )
    return pieces_of_text(tokenizer, tokens, before=body)


class Reader:
    """A document in memory, to be asked about."""

    def __init__(self, opened: OpenedModel, prompt: DocumentPrompt) -> None:
        self.opened = opened
        self.prompt = prompt
        self.cache = opened.new_cache()

    def read(self, text: str, report: Report | None = None) -> None:
        """Read the document."""
        ids = self.prompt.document(text)
        _warn_if_silent(self.opened, len(ids))
        read(self.opened.model, ids, self.cache, report=report)

    def tokens(
        self, question: str, max_new_tokens: int, sampling: Sampling, *, last: bool = False
    ) -> Iterator[int]:
        """An answer's tokens, from a copy of the memory.

        Args:
            last: use the memory itself up, which saves the copy.
        """
        model = self.opened.model
        cache = self.cache if last else self.cache.fork()
        logits = read(model, self.prompt.question(question), cache)
        stop = stop_ids(model, self.opened.tokenizer)
        yield from write(
            model, cache, logits, max_new_tokens=max_new_tokens, stop=stop, sampling=sampling
        )

    def answer(
        self, question: str, max_new_tokens: int, sampling: Sampling, *, last: bool = False
    ) -> Iterator[str]:
        """An answer, piece by piece; arguments as for ``tokens``."""
        tokens = self.tokens(question, max_new_tokens, sampling, last=last)
        return until(pieces_of_text(self.opened.tokenizer, tokens), self.prompt.stop)


class Conversation:
    """Turns over one growing memory; nothing is read twice."""

    def __init__(self, opened: OpenedModel, prompts: ChatPrompts, sampling: Sampling) -> None:
        self.opened = opened
        self.prompts = prompts
        self.sampling = sampling
        self.cache: AllMemCache = opened.new_cache()

    @property
    def tokens(self) -> int:
        """Read so far."""
        return self.cache.columns

    @property
    def state_bytes(self) -> int:
        """What the conversation takes up, however long it was."""
        return self.cache.nbytes

    def reset(self) -> None:
        """Forget everything."""
        self.cache = self.opened.new_cache()

    def say_tokens(self, text: str, max_new_tokens: int) -> Iterator[int]:
        """One turn: the answer's tokens."""
        model = self.opened.model
        ids = self.prompts.next(text) if self.cache.columns else self.prompts.first(text)
        logits = read(model, ids, self.cache)
        yield from write(
            model,
            self.cache,
            logits,
            max_new_tokens=max_new_tokens,
            stop=stop_ids(model, self.opened.tokenizer),
            sampling=self.sampling,
        )

    def say(self, text: str, max_new_tokens: int) -> Iterator[str]:
        """One turn: the answer, piece by piece."""
        return until(
            pieces_of_text(self.opened.tokenizer, self.say_tokens(text, max_new_tokens)), None
        )
