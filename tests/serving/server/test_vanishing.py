"""Clients that go away: what their request held is free at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from allmem.serving.server.limits import Limits
from tests.serving.server.fake import NAME, FakeEngine, Running, running
from tests.serving.server.test_errors import CHAT, TURN


@pytest.fixture
def server(tokenizer: Any) -> Iterator[Running]:
    engine = FakeEngine(tokenizer, forever=True, pause=0.01)
    with running(engine, Limits(max_tokens=10_000)) as server:
        yield server


def test_in_the_middle_of_a_stream(server: Running) -> None:
    body = {"messages": [TURN], "stream": True, "n": 2}
    with httpx.stream("POST", server.url + CHAT, json=body) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        assert server.engine.open == 2
    server.wait(lambda: server.engine.open == 0)
    assert server.engine.cancelled == 2
    assert "allmem_cancelled_total 1.0" in httpx.get(server.url + "/metrics").text


def test_before_a_whole_answer(server: Running) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(server.url + CHAT, json={"messages": [TURN]}, timeout=0.5)
    server.wait(lambda: server.engine.open == 0)
    assert server.engine.cancelled == 1


def test_before_the_first_token(server: Running) -> None:
    server.engine.pause = 30
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(server.url + CHAT, json={"messages": [TURN], "stream": True}, timeout=0.5)
    server.wait(lambda: server.engine.open == 0)
    assert server.engine.cancelled == 1


def test_before_the_first_token_when_the_stream_has_begun(tokenizer: Any) -> None:
    """A stream that has nothing to tell for long gives a sign of life."""
    engine = FakeEngine(tokenizer, pause=1.0)
    with running(engine, Limits(silence=0.2)) as server:
        body = {"messages": [TURN], "stream": True, "max_tokens": 2}
        with httpx.stream("POST", server.url + CHAT, json=body) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith(":")
        server.wait(lambda: engine.cancelled == 1)
        client = openai.OpenAI(base_url=server.url + "/v1", api_key="none")
        stream = client.chat.completions.create(
            model=NAME, messages=[TURN], stream=True, max_tokens=2
        )
        assert [chunk.choices[0].finish_reason for chunk in stream][-1] == "length"
