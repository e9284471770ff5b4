"""``/v1/models``, ``/health`` and ``/metrics``."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from allmem.serving.server.metrics import CONTENT_TYPE
from allmem.serving.server.planning import longest_prompt
from allmem.serving.server.replying import responses
from allmem.serving.server.responses import Health, ModelCard, ModelList
from allmem.serving.server.service import Service

__all__ = ["open_routes", "model_routes"]

OWNER = "allmem"
"""By which clients, ``allmem evaluate`` for one, know what the server can."""


def model_routes(service: Service) -> APIRouter:
    """What is served."""
    routes = APIRouter()

    def card() -> ModelCard:
        return ModelCard(
            id=service.name,
            created=service.created,
            owned_by=OWNER,
            max_model_len=longest_prompt(service.limits, service.model.engine),
        )

    @routes.get("/v1/models", summary="List the model.", responses=responses(401, 503))
    async def models() -> ModelList:
        return ModelList(data=[card()])

    # Names of hub models have a slash.
    @routes.get(
        "/v1/models/{name:path}", summary="Show the model.", responses=responses(401, 404, 503)
    )
    async def model(name: str) -> ModelCard:
        service.check_name(name)
        return card()

    return routes


def open_routes(service: Service) -> APIRouter:
    """What needs no key."""
    routes = APIRouter()

    @routes.get("/health", summary="Whether requests are taken.", responses=responses(503))
    async def health() -> Health:
        return Health()

    @routes.get(
        "/metrics",
        summary="Metrics for Prometheus.",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def metrics() -> Response:
        return Response(service.metrics.text(), headers={"content-type": CONTENT_TYPE})

    return routes
