"""The server as an ASGI application. Whoever runs it starts the service before and stops it after.

Its description is at ``/openapi.json``; there are no pages of documentation, since they would load
scripts from elsewhere.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Security
from fastapi.security import HTTPBearer

from allmem._version import __version__
from allmem.serving.server.chat import chat_routes
from allmem.serving.server.completions import completion_routes
from allmem.serving.server.errors import add_handlers
from allmem.serving.server.guards import BodyGuard, Counting, DoorGuard
from allmem.serving.server.others import model_routes, open_routes
from allmem.serving.server.service import Service

__all__ = ["create_app"]


def create_app(service: Service, *, api_key: str | None = None) -> FastAPI:
    """The application.

    Args:
        api_key: that clients must send; ``None`` for none.
    """
    app = _Described(
        title="allmem",
        version=__version__,
        description="A language model with a memory of constant size, by OpenAI's protocol.",
        docs_url=None,
        redoc_url=None,
        # A page on the web could otherwise send forms to a server on its reader's machine.
        strict_content_type=True,
    )
    add_handlers(app)
    # The guard does the checking; this describes it.
    described = [] if api_key is None else [Security(HTTPBearer(auto_error=False))]
    for routes in (chat_routes, completion_routes, model_routes):
        app.include_router(routes(service), dependencies=described)
    app.include_router(open_routes(service))
    # The last one added stands outermost.
    app.add_middleware(BodyGuard, limits=service.limits)
    app.add_middleware(DoorGuard, service=service, key=api_key)
    app.add_middleware(Counting, metrics=service.metrics)
    return app


class _Described(FastAPI):
    """Describes no answer with status 422: what is not valid is answered 400."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            described = super().openapi()
            for path in described["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
            for name in ("HTTPValidationError", "ValidationError"):
                described["components"]["schemas"].pop(name, None)
        return super().openapi()
