"""Server-sent events, and clients that vanish: their request ends at once, streamed or not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from allmem.errors import AllMemError
from allmem.serving.server.errors import ApiError, error_body, internal_error

__all__ = ["ClientGoneError", "EventStream", "unless_gone"]

GONE = 499
"""What logs call the status of an answer that nobody waits for; nginx's."""
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # nginx would gather the events.
    (b"x-accel-buffering", b"no"),
]
COMMENT = ": still writing"
"""Clients skip what begins with a colon."""

Result = TypeVar("Result")


class ClientGoneError(ApiError):
    """Nobody waits for the answer any more."""

    def __init__(self) -> None:
        super().__init__("the client went away", GONE)


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """What ``work`` gives; it is cancelled if the client goes first.

    Args:
        receive: of a request whose body was read.

    Raises:
        ClientGoneError: if the client went.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGoneError
    finally:
        for one in (task, watch):
            one.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """An answer in events, the last of which is ``[DONE]``, or an error.

    Args:
        chunks: ``None`` for a sign of life; closed at the end, whatever happens.
        send_timeout: seconds after which a client that reads nothing is taken for gone.
    """

    def __init__(self, chunks: AsyncGenerator[BaseModel | None, None], send_timeout: float) -> None:
        self.status_code = 200
        self.background = None
        self._chunks = chunks
        self._send_timeout = send_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        try:
            await unless_gone(receive, self._write(send))
        except (ClientGoneError, TimeoutError):
            # Nothing can be told to those who do not listen.
            return

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        async with aclosing(self._events()) as events:
            async for event in events:
                body = f"{event}\n\n".encode()
                async with asyncio.timeout(self._send_timeout):
                    await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self) -> AsyncGenerator[str, None]:
        async with aclosing(self._chunks) as chunks:
            try:
                async for chunk in chunks:
                    yield COMMENT if chunk is None else f"data: {chunk.model_dump_json()}"
                yield "data: [DONE]"
            except AllMemError as error:
                yield f"data: {error_body(error).model_dump_json()}"
            except Exception:
                yield f"data: {error_body(internal_error()).model_dump_json()}"
                raise
