"""What the answering endpoints have in common: the answers to a request, whole or as events."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar
from uuid import uuid4

from fastapi import Request
from pydantic import BaseModel
from starlette.responses import Response

from allmem.serving.server.answer import Piece
from allmem.serving.server.events import EventStream, unless_gone
from allmem.serving.server.merging import with_silences
from allmem.serving.server.planning import Answer
from allmem.serving.server.responses import ErrorBody, Usage
from allmem.serving.server.service import Service

__all__ = ["Reply", "respond", "responses"]

Whole = TypeVar("Whole", bound=BaseModel)
Chunk = TypeVar("Chunk", bound=BaseModel)

ERRORS = {
    400: "The request is not valid; the message says what to change.",
    401: "The API key is missing or wrong.",
    404: "There is no such model.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    415: "The body is not JSON by its Content-Type.",
    500: "A defect of the server.",
    503: "The queue is full, or the server is shutting down.",
    504: "The answer was not ready in time.",
}

EVENT = {
    "type": "object",
    "properties": {"data": {"type": "string", "contentMediaType": "application/json"}},
    "required": ["data"],
}
"""An event, in the words of OpenAPI 3.2; the last one's data is ``[DONE]``."""


def responses(*codes: int, streams: bool = False) -> dict[int | str, dict[str, Any]]:
    """For the description of an endpoint.

    Args:
        codes: of the errors that it can answer; all of them if none is named.
    """
    described: dict[int | str, dict[str, Any]] = {
        code: {"model": ErrorBody, "description": ERRORS[code]} for code in codes or ERRORS
    }
    if streams:
        content = {"text/event-stream": {"itemSchema": EVENT}}
        described[200] = {"description": "The answer, whole or as events.", "content": content}
    return described


@dataclass(frozen=True)
class Reply(ABC, Generic[Whole, Chunk]):
    """The answers to one request.

    Args:
        prompt_tokens: of all prompts.
        with_usage: whether a stream ends with its usage.
    """

    service: Service
    answers: Sequence[Answer]
    prompt_tokens: int
    with_usage: bool

    prefix: ClassVar[str]
    """Of the answers' ids."""

    @abstractmethod
    async def whole(self) -> Whole:
        """All of it."""

    @abstractmethod
    def chunks(self) -> AsyncGenerator[Chunk, None]:
        """Piece by piece."""

    async def written(self) -> list[Piece]:
        """Every answer in one piece."""
        parts: list[list[Piece]] = [[] for _ in self.answers]
        async with aclosing(self.service.write(self.answers)) as pieces:
            async for i, piece in pieces:
                parts[i].append(piece)
        return [
            Piece(
                "".join(piece.text for piece in answer),
                tuple(told for piece in answer for told in piece.tokens),
                answer[-1].finish,
            )
            for answer in parts
        ]

    def head(self) -> dict[str, Any]:
        """What an answer, or all chunks of one, begin with."""
        name = self.service.name
        return {"id": f"{self.prefix}-{uuid4().hex}", "created": int(time.time()), "model": name}

    def usage(self) -> Usage:
        """What was read and written so far."""
        return Usage.of(self.prompt_tokens, sum(answer.text.count for answer in self.answers))


async def respond(reply: Reply[Whole, Chunk], request: Request, streamed: bool) -> Response:
    """Send the answers as they were asked for; both ways end when the client goes away."""
    if not streamed:
        answer = await unless_gone(request.receive, reply.whole())
        return Response(answer.model_dump_json(), media_type="application/json")
    limits = reply.service.limits
    chunks = with_silences(reply.chunks(), limits.silence)
    # What is wrong before there is anything to tell is answered with its status.
    first = await unless_gone(request.receive, _first(chunks))
    return EventStream(_with(first, chunks), limits.send_timeout)


async def _first(chunks: AsyncGenerator[Chunk | None, None]) -> Chunk | None:
    return await anext(chunks)


async def _with(
    first: Chunk | None, rest: AsyncGenerator[Chunk | None, None]
) -> AsyncGenerator[BaseModel | None, None]:
    try:
        yield first
        async for chunk in rest:
            yield chunk
    finally:
        await rest.aclose()
