"""What is not understood, not supported, or too much is refused in the protocol's form."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import httpx
import pytest

from allmem.serving.engine import EngineStopped
from allmem.serving.server.limits import Limits
from tests.serving.server.fake import NAME, FakeEngine, Running, running

CHAT, TEXTS = "/v1/chat/completions", "/v1/completions"
TURN = {"role": "user", "content": "Who?"}


def refused(answer: httpx.Response, status: int = 400) -> dict[str, Any]:
    """The error of an answer."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    assert error["message"]
    return error


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"store": True}, "store"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages.0.content.0.type",
        ),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"seed": 2**70}, "seed"),
        ({"n": 17}, "n"),
        ({"n": True}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10_000_000}, "max_tokens"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        (
            {"continue_final_message": True, "add_generation_prompt": True},
            "continue_final_message",
        ),
        ({"chat_template_kwargs": {"bos_token": "<|im_end|>"}}, "chat_template_kwargs"),
        ({"no_such": 1}, "no_such"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else None,
)
def test_a_field_that_is_wrong_is_named(server: Running, body: Any, param: str) -> None:
    text = json.dumps({"messages": [TURN], **body})
    headers = {"Content-Type": "application/json"}
    error = refused(httpx.post(server.url + CHAT, content=text, headers=headers))
    assert error["param"] == param
    assert not server.engine.requests


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": ""},
        {"prompt": []},
        {"prompt": [[]]},
        {"prompt": [1, "a"]},
        {"prompt": [-1]},
        {"prompt": [100_000]},
        {"prompt": ["a"] * 17},
        {"prompt": "a", "echo": True},
        {"prompt": "a", "best_of": 2},
        {"prompt": "a", "suffix": "b"},
        {"prompt": "a", "logit_bias": {"100000": 1}},
        {},
    ],
    ids=str,
)
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_texts_that_cannot_be_continued_are_refused(
    server: Running, body: Any, streamed: bool
) -> None:
    refused(server.post(TEXTS, stream=streamed, **body))


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b'{"messages": [', 400),
        (b"", 400),
        (b"null", 400),
        (b'"text"', 400),
        (b"[" * 100_000, 400),
        (b'{"messages": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", 400),
        (b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}', 400),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', 400),
        (b'{"\\ud800": 1, "messages": [{"role": "user", "content": "a"}]}', 400),
        (b'{"temperature": NaN, "messages": [{"role": "user", "content": "a"}]}', 400),
        (b'{"seed": ' + b"9" * 5000 + b"}", 400),
        (b'{"model": "other", "messages": [{"role": "user", "content": "a"}]}', 404),
    ],
    ids=lambda value: repr(value[:30]) if isinstance(value, bytes) else str(value),
)
def test_bodies_that_are_no_requests_are_refused(
    server: Running, content: bytes, status: int
) -> None:
    headers = {"Content-Type": "application/json"}
    refused(httpx.post(server.url + CHAT, content=content, headers=headers), status)
    assert httpx.get(server.url + "/health").json() == {"status": "ok"}


@pytest.mark.parametrize(
    "body",
    [
        {str(i): i for i in range(200_000)},
        {"prompt": [{}] * 400_000},
        {"prompt": "a", "logit_bias": {f"x{i}": 1 for i in range(200_000)}},
        {"prompt": "a", "metadata": {f"x{i}": 1 for i in range(200_000)}},
        {"prompt": [[{}]] * 400_000},
    ],
    ids=["fields", "prompts", "biases", "metadata", "lists"],
)
def test_a_million_mistakes_are_one(server: Running, body: Any) -> None:
    assert len(refused(server.post(TEXTS, **body))["message"]) < 500


def test_many_short_messages_are_read_and_too_many_refused(server: Running) -> None:
    marks = {"role": "assistant", "content": "<think></think>" * 20_000}
    assert server.post(messages=[TURN, marks] + [TURN] * 2000).status_code == 200
    assert refused(server.post(messages=[TURN] * 10_001))["param"] == "messages"


def test_only_json_is_taken(server: Running) -> None:
    """A web page may send other types to a server on its reader's machine, this one not."""
    text = json.dumps({"messages": [TURN]})
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        answer = httpx.post(server.url + CHAT, content=text, headers={"Content-Type": kind})
        refused(answer, 415)
    assert not server.engine.requests


def test_unknown_models_paths_and_methods_are_told(server: Running) -> None:
    assert refused(server.post(model="gpt-4o"), 404)["code"] == "model_not_found"
    assert refused(httpx.get(server.url + "/v1/models/other"), 404)["param"] == "model"
    refused(httpx.get(server.url + "/v2/models"), 404)
    answer = httpx.get(server.url + CHAT)
    refused(answer, 405)
    assert answer.headers["allow"] == "POST"
    assert httpx.get(f"{server.url}/v1/models/{NAME}").json()["owned_by"] == "allmem"


def test_a_prompt_that_is_too_long_is_told(engine: FakeEngine) -> None:
    with running(engine, Limits(max_prompt_tokens=20, max_tokens=30)) as server:
        error = refused(server.post(messages=[{"role": "user", "content": "a" * 50}]))
        assert error["code"] == "context_length_exceeded"
        refused(server.post(TEXTS, prompt="a", max_tokens=31))
        assert httpx.get(server.url + "/v1/models").json()["data"][0]["max_model_len"] == 20


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_a_full_queue_says_when_to_come_again(tokenizer: Any, streamed: bool) -> None:
    with running(FakeEngine(tokenizer, most=1)) as server:
        answer = server.post(n=2, stream=streamed)
        assert refused(answer, 503)["code"] == "queue_full"
        assert int(answer.headers["retry-after"]) > 0
        # What the first choice held was given back.
        assert server.post(stream=streamed).status_code == 200


def test_a_stopped_engine_is_told(server: Running) -> None:
    server.engine.failure = EngineStopped("the engine failed: out of memory")
    assert refused(server.post(), 503)["code"] == "engine_stopped"


def test_a_defect_is_told_without_its_traceback(server: Running) -> None:
    server.engine.failure = ZeroDivisionError("secret")
    assert "secret" not in refused(server.post(), 500)["message"]


def test_what_fails_in_a_stream_is_its_last_event(server: Running) -> None:
    failures = {
        "engine_stopped": EngineStopped("the engine failed: out of memory"),
        None: ZeroDivisionError("secret"),
    }
    body = {"messages": [TURN], "stream": True}
    for code, failure in failures.items():
        server.engine.late_failure, server.engine.written = failure, 0
        lines: list[str] = []
        with (
            suppress(httpx.RemoteProtocolError),
            httpx.stream("POST", server.url + CHAT, json=body) as answer,
        ):
            assert answer.status_code == 200
            # The connection is cut after the event: what came before stays.
            lines.extend(answer.iter_lines())
        last = [line for line in lines if line][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == code
        assert "secret" not in last


def test_what_takes_too_long_ends(tokenizer: Any) -> None:
    engine = FakeEngine(tokenizer, forever=True, pause=0.02)
    with running(engine, Limits(timeout=1.0, max_tokens=10_000)) as server:
        answer = server.post()
        assert refused(answer, 504)["code"] == "timeout"
        assert answer.headers["x-should-retry"] == "false"
        # A stream has begun: its status is told, the error is its last event.
        last = server.post(stream=True).text.strip().split("\n\n")[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
        server.wait(lambda: engine.open == 0)
        assert engine.cancelled == 2
