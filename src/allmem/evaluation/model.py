"""The model under test, as tasks see it: it continues prompts, and tells how likely a text is.

Letters: T tokens of a text.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

from allmem.errors import AllMemError
from allmem.reading import Sampling

__all__ = ["Completion", "EvaluatedModel", "Likelihood", "Prompt", "Session"]


@dataclass(frozen=True)
class Prompt:
    """What a model is to continue, ready to be read."""

    ids: list[int] | None
    """Its tokens, template included; ``None`` where the model is reached through a server that
    tokenises by itself."""
    text: str
    """Without the chat template, after truncation."""
    messages: list[dict[str, str]] | None
    """The same as a conversation; ``None`` for a text that is continued as it stands."""
    answer_prefix: str = ""
    """How the answer begins; at the end of ``ids``, beside ``text`` and ``messages``."""
    cut: int = 0
    """Tokens that truncation took out of the middle."""
    max_new_tokens: int = 128
    stop: tuple[str, ...] = ()
    """Texts that end the answer; they are not part of it."""
    ends_at: str = ""
    """A text whose last token ends the answer as the model's own end does; neither of them may be
    the first token of it. A server is told nothing of it: the answer goes on to its limit."""


@dataclass(frozen=True)
class Completion:
    """What a model answered."""

    text: str
    prompt_tokens: int | None
    """Read; ``None`` if a server did not say."""
    new_tokens: int | None
    finished: bool
    """Whether it ended by itself or at a stop text, not at the limit."""


@dataclass(frozen=True)
class Likelihood:
    """How likely a continuation is."""

    log_probability: float
    """Of all its tokens, in nats."""
    tokens: int
    greedy: bool
    """Whether each of its tokens is the likeliest one."""


class Session(ABC):
    """One text being read: a place in it, and all that is remembered of it."""

    tokens: int
    """Read so far."""

    @abstractmethod
    def read(self, ids: Sequence[int]) -> None:
        """Go on reading."""

    @abstractmethod
    def losses(self, ids: Sequence[int]) -> Tensor:
        """Go on reading, and tell the cross-entropy of each token in nats: [T] float32 on the CPU.
        The first token of a text has none (nan)."""

    def check(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Go on reading, and tell the cross-entropy of each token as ``losses`` does, and whether
        it was the likeliest one in its place: [T] float32, [T] bool, on the CPU."""
        raise AllMemError(f"{type(self).__name__} does not tell which token is the likeliest")

    @abstractmethod
    def write(
        self, max_new_tokens: int, stop: Sequence[str] = (), sampling: Sampling | None = None
    ) -> str:
        """What comes next, which is thereby read; ended by the model, a stop text or the limit."""

    @abstractmethod
    def fork(self) -> Self:
        """An independent copy: the same past, two futures."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of all that is remembered."""


class EvaluatedModel(ABC):
    """A model under test.

    What a subclass cannot do raises an ``AllMemError`` that says why and what can.
    """

    label: str
    """Its name in reports, and of its folder in a run."""
    tokenizer: Any = None
    """``None`` if it is not known, as for some servers."""
    reach: int | None = None
    """Tokens of prompt and answer that it was made for; ``None`` if there is no limit."""
    bounded: bool = False
    """Whether it refuses a prompt that leaves no room for its answer within ``reach``, as servers
    do; a model that is loaded here reads on."""
    sees: int = 0
    """Tokens behind which everything is out of its attention's sight, S + W; 0 for full
    attention."""
    sinks: int = 0
    """First tokens, S, that its attention always sees; 0 for full attention."""
    chunk: int = 0
    """Tokens that its memory writes at once, C; 0 without one."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What decides its answers, JSON-able: weights, sizes, precision. A run that is gone on
        with must find the same."""

    @abstractmethod
    def complete(
        self, prompts: Sequence[Prompt], sampling: Sampling, numbers: Sequence[int]
    ) -> list[Completion]:
        """Answer prompts, as one batch.

        Args:
            sampling: how tokens are chosen.
            numbers: of the prompts: which random numbers each draws, whatever its batch.
        """

    def likelihoods(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Likelihood]:
        """How likely continuations are, as one batch.

        Args:
            pairs: tokens of a context, at least one, and of its continuation.
        """
        raise AllMemError(
            f"{self.label} only answers; tasks that compare likelihoods need a model that is "
            "loaded here"
        )

    def session(self) -> Session:
        """A new text."""
        raise AllMemError(
            f"{self.label} only answers; tasks that look into a model need one that is loaded here"
        )
