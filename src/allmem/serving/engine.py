"""What an engine is to the server: token ids in, chosen tokens out, for many requests at once.

It knows neither text nor HTTP. The server turns messages into token ids and tokens into text, ends
an answer at a stop string by closing its stream, and keeps track of time; an engine decides which
requests are read together, and frees what a request held as soon as its stream is closed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Literal

from allmem.errors import AllMemError
from allmem.schema import check_positive
from allmem.serving.sampling import SamplingParams

__all__ = [
    "MAX_WAITING",
    "Engine",
    "EngineLoad",
    "EngineStopped",
    "GeneratedToken",
    "GenerationRequest",
    "QueueFull",
    "usual_step_tokens",
]


MAX_WAITING = 256
"""Requests that may wait, where nothing is said."""

STEP_TOKENS = {"cpu": 128}
"""What a small model reads on two cores in some 0.3 seconds."""
STEP_TOKENS_ELSEWHERE = 2048


def usual_step_tokens(device_type: str) -> int:
    """Tokens that are read in one step where nothing is said: as many as answers that are being
    written can wait for."""
    return STEP_TOKENS.get(device_type, STEP_TOKENS_ELSEWHERE)


class QueueFull(AllMemError):  # noqa: N818 (as asyncio names its own)
    """As many requests wait as may."""


class EngineStopped(AllMemError):  # noqa: N818 (a state more than an error)
    """The engine is shutting down, or has failed, and takes no more requests."""


@dataclass(frozen=True)
class GenerationRequest:
    """One sequence to be continued.

    Raises:
        AllMemError: if there is nothing to read, or nothing to write.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop: frozenset[int] = frozenset()
    """Tokens that end the answer."""
    logprobs: int | None = None
    """How many of the likeliest tokens to tell beside each chosen one; ``None`` for no
    log-probabilities at all."""

    def __post_init__(self) -> None:
        if not self.prompt:
            raise AllMemError("there is nothing to read: the prompt has no tokens")
        if self.max_tokens < 1:
            raise AllMemError(f"max_tokens = {self.max_tokens} must be 1 or more")


@dataclass(frozen=True)
class GeneratedToken:
    """One token of an answer."""

    id: int
    finish: Literal["stop", "length"] | None = None
    """Why the answer ends with this token, if it does: it is one of ``stop``, or the last that was
    asked for."""
    logprob: float | None = None
    """Of the model's own distribution, before any sampling option."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens and their log-probabilities, best first."""


@dataclass(frozen=True)
class EngineLoad:
    """What an engine is doing."""

    running: int = 0
    """Requests that hold a state."""
    waiting: int = 0
    """Requests that wait for one."""
    slots: int = 0
    """Requests that can run at once."""
    state_bytes: int = 0
    """Held for the states of all slots, and of texts that may be gone on with, on the computing
    device."""
    prompt_tokens: int = 0
    """Read since the start; without what was read for an earlier request."""
    generated_tokens: int = 0
    """Written since the start."""


class Engine(ABC):
    """Continues many sequences at once."""

    name: str
    """As the server's logs and metrics call it."""
    slots: int
    """Requests that can run at once."""
    max_waiting: int
    """Requests that may wait."""
    vocabulary: int
    """Tokens that the model has embeddings for."""

    @staticmethod
    def check_sizes(max_waiting: int, **positive: int | None) -> None:
        """Refuse sizes out of their range, by their names.

        Raises:
            AllMemError: naming the first.
        """
        check_positive(**positive)
        if max_waiting < 0:
            raise AllMemError(f"max_waiting = {max_waiting} must be 0 (none waits) or more")

    def admit(self, request: GenerationRequest, under_way: int) -> None:
        """Refuse a request that cannot be taken: because it is one too many, or because it would
        end the step of all others, too.

        Args:
            under_way: requests that run or wait.

        Raises:
            QueueFull, AllMemError: as ``generate``.
        """
        named = (*request.prompt, *request.sampling.logit_bias)
        unknown = next((token for token in named if not 0 <= token < self.vocabulary), None)
        if unknown is not None:
            raise AllMemError(
                f"there is no token {unknown}: the model's vocabulary has {self.vocabulary} "
                "tokens, from 0 on"
            )
        if under_way >= self.slots + self.max_waiting:
            raise QueueFull(
                f"{self.slots} requests are under way and {self.max_waiting} wait, as many as may; "
                "try again later"
            )

    @abstractmethod
    async def start(self) -> None:
        """Make ready, in the event loop that will call ``generate``."""

    @abstractmethod
    async def stop(self) -> None:
        """End every request with ``EngineStopped`` and give everything back; safe to call twice."""

    @abstractmethod
    def generate(self, request: GenerationRequest) -> AsyncGenerator[GeneratedToken, None]:
        """The tokens of an answer as they are chosen; the last one says why it is the last.

        Closing the stream early cancels the request and frees its state.

        Raises:
            QueueFull: with the first token asked for, if too many requests wait already.
            EngineStopped: if the engine takes no requests any more, or failed on the way.
            AllMemError: if the request names a token that the model does not have.
        """

    @abstractmethod
    def load(self) -> EngineLoad:
        """What the engine is doing now; cheap."""

    @property
    @abstractmethod
    def max_prompt_tokens(self) -> int | None:
        """The longest prompt that it can read; ``None`` for no limit."""
