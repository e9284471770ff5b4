"""``allmem serve``, up to the point where it would listen."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from allmem.errors import AllMemError
from allmem.serving import installed
from allmem.serving.opening import EngineSettings, open_served
from allmem.serving.server import running
from allmem.serving.server.sockets import address, bind, is_local

Ask = Callable[[httpx.AsyncClient], Any]


@pytest.fixture
def serve(run: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[httpx.Response]]:
    """Run the command; in the place of listening, its application is asked."""

    def invoke(*args: str, ask: list[tuple[str, str, Any]]) -> list[httpx.Response]:
        answers: list[httpx.Response] = []

        async def talk(service: Any, app: Any) -> None:
            await service.start()
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://a") as client:
                answers.extend([await client.request(m, p, json=body) for m, p, body in ask])
            await service.stop()

        def instead(service: Any, app: Any, sock: socket.socket, **options: Any) -> None:
            options["ready"]()
            asyncio.run(talk(service, app))
            sock.close()

        monkeypatch.setattr(running, "run", instead)
        said = run("serve", *args, "--port", "0").stdout
        assert " is served at http://127.0.0.1:" in said
        assert said.endswith("/v1\n")
        return answers

    return invoke


def test_a_model_is_served_under_its_name(serve: Any, converted: str) -> None:
    turn = {"messages": [{"role": "user", "content": "Who?"}], "max_tokens": 3, "seed": 1}
    ask = [
        ("GET", "/v1/models", None),
        ("POST", "/v1/chat/completions", turn),
        ("POST", "/v1/chat/completions", turn),
        ("POST", "/v1/completions", {"prompt": [10_000], "max_tokens": 3}),
    ]
    models, first, second, refused = serve(converted, "--slots", "2", "--max-tokens", "5", ask=ask)
    assert models.json()["data"][0]["id"] == Path(converted).name
    assert first.status_code == 200, first.text
    assert first.json()["usage"]["completion_tokens"] <= 3
    assert first.json()["choices"] == second.json()["choices"]
    assert refused.status_code == 400


def test_the_key_may_be_in_the_environment(
    serve: Any, converted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALLMEM_API_KEY", "sk")
    assert serve(converted, ask=[("GET", "/v1/models", None)])[0].status_code == 401


def test_an_address_that_is_taken_is_told(fails: Any, converted: str) -> None:
    with bind("127.0.0.1", 0) as sock:
        sock.listen()
        port = str(sock.getsockname()[1])
        assert is_local(sock)
        assert address(sock) == f"http://127.0.0.1:{port}"
        assert f"cannot listen at 127.0.0.1:{port}" in fails("serve", converted, "--port", port)


def test_a_missing_engine_is_told(fails: Any, converted: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(installed, "find_spec", lambda name: None)
    said = fails("serve", converted, "--port", "0", "--engine", "vllm")
    assert "vllm is not installed" in said
    with pytest.raises(AllMemError, match="unknown engine 'embeded'; did you mean 'embedded'"):
        open_served("embeded", EngineSettings(), lambda: None)  # type: ignore[arg-type]


def test_keeping_states_is_for_the_own_engine(
    fails: Any, converted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if it were installed: it is not looked at before the options.
    monkeypatch.setattr(installed, "find_spec", lambda name: name)
    for engine in ("auto", "vllm"):
        said = fails("serve", converted, "--port", "0", "--engine", engine, "--keep", "2")
        assert "keep = 2 is of the engine embedded" in said
