"""Running a server: signals, and an end in good order.

On SIGTERM or SIGINT new requests are refused, answers under way have some seconds to finish, and
what is left is ended with an error. A second signal ends everything at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn
from fastapi import FastAPI

from allmem.serving.server.connections import connections_of
from allmem.serving.server.limits import Limits
from allmem.serving.server.service import Service

__all__ = ["make_server", "run"]

LAST_SECONDS = 5
"""In which clients can take their errors, after the answers were ended."""
BACKLOG = 2048


def run(
    service: Service,
    app: FastAPI,
    sock: socket.socket,
    *,
    grace: float,
    ready: Callable[[], None] = lambda: None,
    verbose: bool = False,
) -> None:
    """Serve until a signal comes.

    Args:
        grace: seconds for answers to finish.
        ready: called when requests are taken.
        verbose: log every request.

    Raises:
        AllMemError: if the engine cannot be started.
    """
    server = make_server(app, service.limits, grace, ready, verbose=verbose)
    asyncio.run(_serve(server, service, sock, grace))


def make_server(
    app: FastAPI, limits: Limits, grace: float, ready: Callable[[], None], *, verbose: bool = False
) -> uvicorn.Server:
    """A server without an engine's start, signals and end; arguments as for ``run``."""
    config = uvicorn.Config(
        app,
        http=connections_of(limits.head_timeout),
        ws="none",
        lifespan="off",
        log_level="info" if verbose else "warning",
        access_log=verbose,
        server_header=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=round(grace + LAST_SECONDS),
    )
    return _Server(config, ready)


async def _serve(
    server: uvicorn.Server, service: Service, sock: socket.socket, grace: float
) -> None:
    loop = asyncio.get_running_loop()
    ending: list[asyncio.Task[None]] = []

    async def end() -> None:
        await asyncio.sleep(grace)
        await service.stop()

    def told() -> None:
        if service.closing:
            server.force_exit = True
            return
        service.closing = server.should_exit = True
        ending.append(asyncio.ensure_future(end()))

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told)
    await service.start()
    try:
        await server.serve(sockets=[sock])
    finally:
        for task in ending:
            task.cancel()
        await service.stop()


class _Server(uvicorn.Server):
    """uvicorn's, which leaves signals alone: it would raise them again at the end, and the process
    would end as if killed."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()
