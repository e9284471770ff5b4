"""What stands before the endpoints, as ASGI applications around one another: what is refused here
is refused before a body is read, or before it is parsed.
"""

from __future__ import annotations

import asyncio
import secrets
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from allmem.serving.server.errors import ApiError, error_response
from allmem.serving.server.events import ClientGoneError
from allmem.serving.server.limits import Limits
from allmem.serving.server.metrics import Metrics
from allmem.serving.server.service import Service

__all__ = ["BodyGuard", "Counting", "DoorGuard"]

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics")
"""That metrics tell apart; what a client makes up must not become a new series each."""
PROTECTED = "/v1/"


class Counting:
    """Counts requests and how long they took."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        endpoint = scope["path"] if scope["path"] in PATHS else "other"
        begin = time.perf_counter()
        status = 500

        async def noticed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noticed)
        finally:
            self._metrics.requests.labels(endpoint, str(status)).inc()
            seconds = time.perf_counter() - begin
            self._metrics.request_seconds.labels(endpoint).observe(seconds)


class DoorGuard:
    """Refuses everything when the server is closing, and ``/v1`` without the key.

    Args:
        key: ``None`` if everybody may come in.
    """

    def __init__(self, app: ASGIApp, service: Service, key: str | None) -> None:
        self._app, self._service = app, service
        self._key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http" and (refusal := self._refusal(scope)):
            await error_response(refusal)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        if self._service.closing and scope["path"] != "/metrics":
            headers = {"Connection": "close"}
            return ApiError(
                "the server is shutting down", 503, code="shutting_down", headers=headers
            )
        if self._key is None or not scope["path"].startswith(PROTECTED):
            return None
        kind, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        known = secrets.compare_digest(given.strip().encode("latin-1"), self._key)
        if kind.lower() == "bearer" and known:
            return None
        return ApiError(
            "the API key is wrong" if given else "an API key is needed: Authorization: Bearer KEY",
            401,
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


class BodyGuard:
    """Reads bodies as far as the limits allow, and hands them on whole."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app, self._limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        try:
            body = await self._read(scope, receive)
        except ClientGoneError:
            return
        except ApiError as error:
            await error_response(error)(scope, receive, send)
            return
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replayed() -> Message:
            return waiting.pop() if waiting else await receive()

        await self._app(scope, replayed, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        told = Headers(scope=scope).get("content-length", "")
        if told.isdecimal() and int(told) > self._limits.max_body_bytes:
            raise self._too_large()
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._limits.body_timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGoneError
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > self._limits.max_body_bytes:
                        raise self._too_large()
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise ApiError(
                f"the body did not come in {self._limits.body_timeout:g} seconds",
                408,
                code="body_timeout",
                headers={"Connection": "close"},
            ) from None

    def _too_large(self) -> ApiError:
        return ApiError(
            f"the body is larger than {self._limits.max_body_bytes} bytes",
            413,
            code="body_too_large",
            # The rest of the body is not read.
            headers={"Connection": "close"},
        )
