"""What stands before the endpoints: the key, and bodies that are too large or too slow."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from allmem.serving.server.limits import Limits
from tests.serving.server.fake import FakeEngine, Running, running
from tests.serving.server.test_errors import CHAT, TURN, refused

KEY = "sk-key-ä"


@pytest.fixture
def guarded(engine: FakeEngine) -> Iterator[Running]:
    limits = Limits(max_body_bytes=10_000, body_timeout=2)
    with running(engine, limits) as server:
        yield server


def everything(connection: socket.socket) -> bytes:
    """What a server says until it hangs up."""
    return b"".join(iter(lambda: connection.recv(10_000), b""))


def test_a_key_opens_what_it_protects(engine: FakeEngine) -> None:
    with running(engine, api_key=KEY) as server:
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEY}"}):
            sent = {name: value.encode() for name, value in header.items()}
            for path in ("/v1/models", "/v1/nowhere"):
                assert refused(httpx.get(server.url + path, headers=sent), 401)["code"]
            answer = httpx.post(server.url + CHAT, json={"messages": [TURN]}, headers=sent)
            assert refused(answer, 401)["code"] == "invalid_api_key"
        right = {"Authorization": f"Bearer {KEY}".encode()}
        assert httpx.get(server.url + "/v1/models", headers=right).status_code == 200
        assert httpx.get(server.url + "/health").status_code == 200
        assert httpx.get(server.url + "/metrics").status_code == 200
        described = httpx.get(server.url + "/openapi.json").json()
        assert described["paths"][CHAT]["post"]["security"] == [{"HTTPBearer": []}]


def test_a_large_body_is_refused(guarded: Running) -> None:
    turn = {"role": "user", "content": "a" * 20_000}
    assert refused(guarded.post(messages=[turn]), 413)["code"] == "body_too_large"
    assert guarded.post().status_code == 200


def test_a_body_without_a_length_is_counted(guarded: Running) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 1000

    answer = httpx.post(guarded.url + CHAT, content=parts())
    assert refused(answer, 413)["code"] == "body_too_large"

    def small() -> Iterator[bytes]:
        yield b'{"messages": [{"role": "user", '
        yield b'"content": "Who?"}]}'

    headers = {"Content-Type": "application/json"}
    assert httpx.post(guarded.url + CHAT, content=small(), headers=headers).status_code == 200


def test_a_huge_body_is_not_read(guarded: Running) -> None:
    answer = httpx.post(guarded.url + CHAT, content=b" " * 50_000_000, timeout=20)
    refused(answer, 413)


def test_a_slow_body_is_not_waited_for_and_blocks_nobody(guarded: Running) -> None:
    host, port = guarded.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as slow:
        slow.settimeout(60)
        head = f"POST {CHAT} HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n"
        slow.sendall(head.encode())
        slow.sendall(b" ")
        assert guarded.post().status_code == 200
        said = everything(slow).decode()
    assert said.startswith("HTTP/1.1 408")
    assert "body_timeout" in said


def test_a_head_that_does_not_come_is_not_waited_for(tokenizer: Any) -> None:
    # An answer that takes longer than a head may is not cut off.
    engine = FakeEngine(tokenizer, pause=0.4)
    with running(engine, Limits(head_timeout=1)) as server:
        host, port = server.url.removeprefix("http://").split(":")
        get = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
        for said in (b"", b"GET /hea", get + b"GET /hea"):
            with socket.create_connection((host, int(port))) as slow:
                slow.settimeout(20)
                slow.sendall(said)
                heard = everything(slow)
            assert heard.count(b"HTTP/1.1 200") == said.count(get)
        answer = server.post()
        assert answer.elapsed.total_seconds() > 1
        assert answer.json()["choices"][0]["finish_reason"] == "stop"


def test_a_client_that_reads_nothing_blocks_nobody(tokenizer: Any) -> None:
    engine = FakeEngine(tokenizer, text="the " * 50, forever=True)
    limits = Limits(send_timeout=0.5, max_tokens=10**6)
    with running(engine, limits) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect((host, int(port)))
            turn = b'"messages": [{"role": "user", "content": "a"}]'
            # Large events, so that its buffers fill up soon; then it is taken for gone.
            body = b'{"stream": true, "logprobs": true, "top_logprobs": 20, ' + turn + b"}"
            head = (
                f"POST {CHAT} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n"
            )
            deaf.sendall(head.encode() + body)
            server.wait(lambda: engine.open == 1)
            assert server.post(max_tokens=3).status_code == 200
            server.wait(lambda: engine.cancelled == 1)
