"""Every error in OpenAI's form: ``{"error": {"message", "type", "param", "code"}}``.

What users' input causes is an ``AllMemError`` and answered 400, unless it says otherwise.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from allmem.errors import AllMemError
from allmem.serving.engine import EngineStopped, QueueFull
from allmem.serving.server.requests import FIELDS, REFUSED
from allmem.serving.server.responses import ErrorBody, ErrorDetail

__all__ = [
    "ApiError",
    "add_handlers",
    "as_api_error",
    "error_body",
    "error_response",
    "internal_error",
]

RETRY_AFTER = 1
"""Seconds after which a client may ask a full server again."""


class ApiError(AllMemError):
    """An error with its HTTP status.

    Args:
        code: the protocol's word for it.
        param: the field of the request that is to blame.
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        self.headers = dict(headers or {})


def as_api_error(error: AllMemError) -> ApiError:
    """An engine's error, or one about a user's input, with its status."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFull):
        wait = {"Retry-After": str(RETRY_AFTER)}
        return ApiError(str(error), 503, code="queue_full", headers=wait)
    if isinstance(error, EngineStopped):
        return ApiError(str(error), 503, code="engine_stopped")
    return ApiError(str(error))


def error_body(error: AllMemError) -> ErrorBody:
    """What a client is told."""
    known = as_api_error(error)
    kind = "server_error" if known.status >= 500 else "invalid_request_error"
    detail = ErrorDetail(message=str(known), type=kind, param=known.param, code=known.code)
    return ErrorBody(error=detail)


def error_response(error: AllMemError) -> Response:
    """The same as a response."""
    known = as_api_error(error)
    # ASCII, since a message may quote halves of characters, which UTF-8 has no bytes for.
    text = json.dumps(error_body(known).model_dump())
    return Response(text, known.status, known.headers, "application/json")


def internal_error() -> ApiError:
    """What is told of a defect."""
    return ApiError("internal error; the server's log says more", 500)


def add_handlers(app: FastAPI) -> None:
    """Let an application answer all its errors so."""

    @app.exception_handler(AllMemError)
    async def bad_input(request: Request, error: AllMemError) -> Response:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return error_response(_explained(error))

    @app.exception_handler(HTTPException)
    async def routing(request: Request, error: HTTPException) -> Response:
        known = ApiError(str(error.detail), error.status_code, headers=error.headers)
        return error_response(known)

    @app.exception_handler(Exception)
    async def defect(request: Request, error: Exception) -> Response:
        # It is raised once more afterwards, and so comes into the server's log.
        return error_response(internal_error())


def _explained(error: RequestValidationError) -> ApiError:
    """The one complaint of the validation that says most."""
    if isinstance(error.body, bytes):
        return ApiError("send JSON, with the header Content-Type: application/json", 415)
    complaints: Sequence[Any] = error.errors()
    # Of a field that may have several types, the type that was meant is looked into furthest.
    worst = max(complaints, key=lambda complaint: len(complaint["loc"]))
    if worst["type"] == "json_invalid":
        return ApiError(f"the body is not JSON: {worst['ctx']['error']} at {worst['loc'][-1]}")
    place = [part for part in worst["loc"] if isinstance(part, int) or part in FIELDS]
    param = ".".join(map(str, place)) or None
    if worst["type"] == "extra_forbidden":
        name = str(worst["loc"][-1])
        return ApiError(f"unknown field {name!r}; leave it out", param=name)
    if place and (remedy := REFUSED.get(str(place[0]))):
        return ApiError(remedy, param=str(place[0]), code="unsupported_parameter")
    if place and place[0] == "messages" and place[-1] in ("type", "role"):
        what = f"{place[-1]} {reprlib.repr(worst['input'])} is not supported"
        return ApiError(f"{param}: {what}; {worst['msg']}", param=param)
    said, got = worst["msg"].removeprefix("Value error, "), reprlib.repr(worst["input"])
    return ApiError(f"{param or 'the body'}: {said} (got {got})", param=param)
