"""Connections, each of which costs a file descriptor: a client that opens one and says nothing, or
says its request's head letter by letter, is hung up on. What it says after that is the business of
``guards``."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["connections_of"]


class _Connection(H11Protocol):
    """uvicorn's, which waits for a head for ever."""

    seconds: float
    """In which a head must have come, from the connection's or its own first letter on."""
    _hang_up: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_watching()

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_watching()
        elif self._hang_up is None:
            self._hang_up = self.loop.call_later(self.seconds, self.transport.close)

    def _stop_watching(self) -> None:
        if self._hang_up is not None:
            self._hang_up.cancel()
            self._hang_up = None


def connections_of(seconds: float) -> type[asyncio.Protocol]:
    """The protocol of connections whose requests' heads must come within so many seconds."""
    return type("Connection", (_Connection,), {"seconds": seconds})
