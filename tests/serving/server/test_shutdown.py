"""A server that is told to end: it takes nothing new, finishes what it can, and ends well."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from allmem.serving.server.app import create_app
from allmem.serving.server.running import run
from allmem.serving.server.sockets import address, bind
from tests.serving.server.fake import FakeEngine, make_service
from tests.serving.server.test_errors import CHAT, TURN

ROOT = Path(__file__).parents[3]


def stream(url: str, tokens: int, act: Callable[[], None] = lambda: None) -> list[str]:
    """The events of an answer, in the middle of which something is done."""
    body = {"messages": [TURN], "stream": True, "max_tokens": tokens}
    with httpx.stream("POST", url + CHAT, json=body, timeout=20) as answer:
        events = []
        for line in answer.iter_lines():
            if line:
                events.append(line.removeprefix("data: "))
                if len(events) == 3:
                    act()
    return events


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_what_can_be_finished_is_and_the_rest_ends_with_an_error(
    tokenizer: Any, number: signal.Signals
) -> None:
    """Signals go to the main thread: the server runs there, its clients in others."""
    service = make_service(FakeEngine(tokenizer, pause=0.05, forever=True))
    sock = bind("127.0.0.1", 0)
    url = address(sock)
    asked: list[Future[list[str]]] = []

    def end() -> None:
        os.kill(os.getpid(), number)
        time.sleep(0.3)
        with pytest.raises(httpx.ConnectError):
            httpx.get(url + "/health")

    with ThreadPoolExecutor() as pool:

        def ask() -> None:
            asked.append(pool.submit(stream, url, 8000))
            asked.append(pool.submit(stream, url, 20, end))

        run(service, create_app(service), sock, grace=2.0, ready=ask)
    endless, short = (one.result() for one in asked)
    assert short[-1] == "[DONE]"
    assert json.loads(short[-2])["choices"][0]["finish_reason"] == "length"
    assert json.loads(endless[-1])["error"]["code"] == "engine_stopped"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "times"), [(signal.SIGTERM, 1), (signal.SIGINT, 2)], ids=["SIGTERM", "twice-SIGINT"]
)
def test_a_process_ends_with_code_0(number: signal.Signals, times: int) -> None:
    """The second signal does not wait for the minute of grace."""
    grace = "60" if times == 2 else "0.5"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.serving.server.process", "0.05", grace],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()

        def end() -> None:
            for _ in range(times):
                process.send_signal(number)
                time.sleep(0.1)

        try:
            events = stream(url, 8000, end)
            assert json.loads(events[-1])["error"]["code"] == "engine_stopped"
        except httpx.TransportError:
            assert times == 2
        assert process.wait(20) == 0
