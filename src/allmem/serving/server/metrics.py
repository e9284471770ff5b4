"""What Prometheus is told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from allmem.serving.engine import Engine

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

REQUEST_SECONDS = (0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
FIRST_TOKEN_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
TOKEN_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2)


class Metrics:
    """The counters of one server."""

    def __init__(self, engine: Engine) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(engine))
        more: dict[str, Any] = {"registry": self._registry}
        self.requests = Counter(
            "allmem_requests", "Requests that were answered.", ["endpoint", "status"], **more
        )
        self.request_seconds = Histogram(
            "allmem_request_seconds",
            "From a request's headers to the end of its answer.",
            ["endpoint"],
            buckets=REQUEST_SECONDS,
            **more,
        )
        self.first_token_seconds = Histogram(
            "allmem_first_token_seconds",
            "To the first token of an answer, waiting for a slot included.",
            buckets=FIRST_TOKEN_SECONDS,
            **more,
        )
        self.token_seconds = Histogram(
            "allmem_token_seconds",
            "Per token of an answer after the first, on average.",
            buckets=TOKEN_SECONDS,
            **more,
        )
        self.cancelled = Counter(
            "allmem_cancelled", "Requests whose client went away before their end.", **more
        )

    def text(self) -> bytes:
        """All of them, in Prometheus' format."""
        return generate_latest(self._registry)


class _EngineCollector(Collector):
    """Asks the engine when Prometheus asks."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Any]:
        load = self._engine.load()
        for name, text in (
            ("running", "Requests that hold a state."),
            ("waiting", "Requests that wait for one."),
            ("slots", "Requests that can run at once."),
            ("state_bytes", "Bytes of the states of all slots, on the computing device."),
        ):
            yield GaugeMetricFamily(f"allmem_{name}", text, value=getattr(load, name))
        for name, text in (
            ("prompt_tokens", "Tokens read."),
            ("generated_tokens", "Tokens written."),
        ):
            yield CounterMetricFamily(f"allmem_{name}", text, value=getattr(load, name))
