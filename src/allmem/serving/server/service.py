"""A model, its engine and its limits, as the endpoints see them. It knows no HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from allmem.serving.engine import GeneratedToken
from allmem.serving.opening import ServedModel
from allmem.serving.server.answer import Piece
from allmem.serving.server.encoding import Encoder
from allmem.serving.server.errors import ApiError
from allmem.serving.server.limits import Limits
from allmem.serving.server.merging import merged
from allmem.serving.server.metrics import Metrics
from allmem.serving.server.planning import Answer
from allmem.serving.server.spelling import Spelling

__all__ = ["Service"]


class Service:
    """What a server serves.

    Args:
        name: as clients call the model.
        thinking: let models that can think before they answer, unless a request says otherwise.
    """

    def __init__(
        self,
        model: ServedModel,
        name: str,
        limits: Limits | None = None,
        *,
        thinking: bool = False,
    ) -> None:
        self.model, self.name, self.thinking = model, name, thinking
        self.limits = limits or Limits()
        self.encoder = Encoder(model.tokenizer)
        self.spelling = Spelling(model.tokenizer)
        self.metrics = Metrics(model.engine)
        self.created = int(time.time())
        self.closing = False
        """Whether new requests are refused."""

    async def start(self) -> None:
        """Make the engine ready."""
        await self.model.engine.start()

    async def stop(self) -> None:
        """End what is under way; safe to call twice."""
        self.closing = True
        await self.model.engine.stop()

    def check_name(self, name: str | None) -> None:
        """Refuse requests for other models.

        Raises:
            ApiError: if the name is another.
        """
        if name is not None and name != self.name:
            raise ApiError(
                f"there is no model {name!r} here, only {self.name!r}",
                404,
                code="model_not_found",
                param="model",
            )

    async def write(self, answers: Sequence[Answer]) -> AsyncGenerator[tuple[int, Piece], None]:
        """Several answers at once: pieces as they come, each with its answer's number.

        Closing the stream early cancels them.

        Raises:
            AllMemError: what the engine says, or that it took too long.
        """
        deadline = asyncio.get_running_loop().time() + self.limits.timeout
        streams = [self._pieces(answer) for answer in answers]
        try:
            async with aclosing(merged(streams, deadline)) as pieces:
                async for number, piece in pieces:
                    yield number, piece
        except TimeoutError:
            raise ApiError(
                f"the answer was not ready in {self.limits.timeout:g} seconds",
                504,
                code="timeout",
                # OpenAI's client would ask for the same once more.
                headers={"x-should-retry": "false"},
            ) from None
        except (asyncio.CancelledError, GeneratorExit):
            self.metrics.cancelled.inc()
            raise

    async def _pieces(self, answer: Answer) -> AsyncGenerator[Piece, None]:
        async with aclosing(self._timed(answer)) as tokens:
            async for token in tokens:
                piece = answer.text.push(token)
                if piece is None:
                    continue
                yield piece
                if piece.finish is not None:
                    # A stop string ends an answer of which the engine would write more.
                    return

    async def _timed(self, answer: Answer) -> AsyncGenerator[GeneratedToken, None]:
        begin = time.perf_counter()
        first = last = 0.0
        count = 0
        try:
            async with aclosing(self.model.engine.generate(answer.request)) as tokens:
                async for token in tokens:
                    last = time.perf_counter()
                    count += 1
                    if count == 1:
                        first = last
                        self.metrics.first_token_seconds.observe(first - begin)
                    yield token
        finally:
            if count > 1:
                self.metrics.token_seconds.observe((last - first) / (count - 1))
