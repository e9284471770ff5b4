"""An engine that writes what it is told to, and a server around it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx

from allmem.errors import AllMemError
from allmem.serving.engine import (
    Engine,
    EngineLoad,
    EngineStopped,
    GeneratedToken,
    GenerationRequest,
    QueueFull,
)
from allmem.serving.opening import ServedModel
from allmem.serving.server.app import create_app
from allmem.serving.server.limits import Limits
from allmem.serving.server.running import make_server
from allmem.serving.server.service import Service
from allmem.serving.server.sockets import address, bind
from tests.cli.conftest import make_tokenizer

NAME = "tiny/model"
TEXT = "The maid wore an iron ring."


@dataclass
class FakeEngine(Engine):
    """Writes one text in every answer.

    Args:
        text: in the tokens of ``tokenizer``, then the token that ends an answer.
        pause: seconds before every token.
        most: requests that it takes at once.
    """

    tokenizer: Any
    text: str = TEXT
    pause: float = 0.0
    most: int = 64
    forever: bool = False
    requests: list[GenerationRequest] = field(default_factory=list)
    open: int = 0
    cancelled: int = 0
    written: int = 0
    failure: Exception | None = None
    late_failure: Exception | None = None

    name = "fake"

    def __post_init__(self) -> None:
        self.stopped = asyncio.Event()

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        self.stopped.set()

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GeneratedToken, None]:
        if self.stopped.is_set():
            raise EngineStopped("the server is shutting down")
        if self.failure is not None:
            raise self.failure
        if self.open >= self.most:
            raise QueueFull(f"{self.open} requests wait already; try again later")
        for token in [*request.prompt, *request.sampling.logit_bias]:
            if token >= len(self.tokenizer):
                raise AllMemError(f"there is no token {token}")
        self.requests.append(request)
        self.open += 1
        ended = False
        try:
            for token in self._script(request):
                await self._wait()
                if self.late_failure and self.written >= 2:
                    raise self.late_failure
                self.written += 1
                ended = token.finish is not None
                yield token
        finally:
            self.open -= 1
            self.cancelled += not ended

    async def _wait(self) -> None:
        if self.pause:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.stopped.wait(), self.pause)
        else:
            await asyncio.sleep(0)
        if self.stopped.is_set():
            raise EngineStopped("the server is shutting down")

    def _script(self, request: GenerationRequest) -> Iterator[GeneratedToken]:
        ids = self.tokenizer(self.text)["input_ids"]
        ids = ids * request.max_tokens if self.forever else [*ids, self.tokenizer.eos_token_id]
        for number, token in enumerate(ids, 1):
            finish = None
            if token in request.stop:
                finish = "stop"
            elif number == request.max_tokens:
                finish = "length"
            logprob, top = None, ()
            if request.logprobs is not None:
                logprob = -0.5
                top = tuple(
                    ((token + i) % len(self.tokenizer), -0.5 - i) for i in range(request.logprobs)
                )
            yield GeneratedToken(token, finish, logprob, top)
            if finish:
                return

    def load(self) -> EngineLoad:
        return EngineLoad(running=self.open, slots=self.most, generated_tokens=self.written)

    @property
    def max_prompt_tokens(self) -> int | None:
        return None


def make_service(engine: FakeEngine, limits: Limits | None = None, **options: Any) -> Service:
    """A service around it, whose makers recommend a temperature."""
    model = ServedModel(
        engine,
        engine.tokenizer,
        frozenset([engine.tokenizer.eos_token_id]),
        {False: {"temperature": 0.7, "top_k": 20}, True: {"temperature": 0.6}},
    )
    return Service(model, NAME, limits, **options)


@dataclass
class Running:
    """A server that runs, and the engine in it."""

    url: str
    engine: FakeEngine
    service: Service

    def post(self, path: str = "/v1/chat/completions", **body: Any) -> httpx.Response:
        """Ask it; a chat with one turn, unless something else is given."""
        if path.endswith("chat/completions"):
            body = {"messages": [{"role": "user", "content": "Who?"}], **body}
        return httpx.post(self.url + path, json=body, timeout=20)

    def wait(self, done: Any) -> None:
        """Until something holds."""
        end = time.monotonic() + 60
        while not done():
            assert time.monotonic() < end, "it never happened"
            time.sleep(0.01)


@contextmanager
def running(
    engine: FakeEngine | None = None,
    limits: Limits | None = None,
    *,
    api_key: str | None = None,
    **options: Any,
) -> Iterator[Running]:
    """A server on a port of its own, in a thread."""
    engine = engine or FakeEngine(make_tokenizer())
    service = make_service(engine, limits, **options)
    sock = bind("127.0.0.1", 0)
    ready = threading.Event()
    server = make_server(create_app(service, api_key=api_key), service.limits, 5, ready.set)
    thread = threading.Thread(target=server.run, args=([sock],))
    thread.start()
    assert ready.wait(10)
    try:
        yield Running(address(sock), engine, service)
    finally:
        server.should_exit = server.force_exit = True
        thread.join()


def texts(events: Sequence[dict[str, Any]], index: int = 0) -> str:
    """What the chunks of a streamed chat say together."""
    return "".join(
        choice["delta"].get("content", "")
        for event in events
        for choice in event["choices"]
        if choice["index"] == index
    )
