"""Clients that people use."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess

import openai
import pytest

from tests.serving.server.fake import NAME, TEXT, FakeEngine, Running, running
from tests.serving.server.test_errors import CHAT, TURN


def test_openai_s_client(server: Running) -> None:
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none")
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).owned_by == "allmem"
    answer = client.chat.completions.create(model=NAME, messages=[TURN], logprobs=True)
    assert answer.choices[0].message.content == TEXT
    assert answer.usage is not None
    assert answer.usage.total_tokens > 0
    again = client.chat.completions.create(
        model=NAME, messages=[TURN, answer.choices[0].message.model_dump(), TURN], top_p=0.5
    )
    assert again.choices[0].finish_reason == "stop"
    assert client.completions.create(model=NAME, prompt="Once").choices[0].text
    extra = {"top_k": 3, "chat_template_kwargs": {"enable_thinking": False}}
    client.chat.completions.create(model=NAME, messages=[TURN], extra_body=extra)
    assert server.engine.requests[-1].sampling.top_k == 3


def test_openai_s_client_streams(server: Running) -> None:
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none")
    options = {"include_usage": True}
    chunks = list(
        client.chat.completions.create(
            model=NAME, messages=[TURN], stream=True, stream_options=options
        )
    )
    said = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(said) == TEXT
    assert chunks[-1].usage is not None
    with client.chat.completions.stream(model=NAME, messages=[TURN]) as events:
        assert events.get_final_completion().choices[0].message.content == TEXT


def test_openai_s_client_asks_many_at_once(server: Running) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none") as client:

            async def one() -> str:
                stream = await client.chat.completions.create(
                    model=NAME, messages=[TURN], stream=True
                )
                return "".join([c.choices[0].delta.content or "" async for c in stream])

            return await asyncio.gather(*(one() for _ in range(8)))

    assert asyncio.run(ask()) == [TEXT] * 8


def test_openai_s_client_knows_the_errors(engine: FakeEngine) -> None:
    with running(engine, api_key="right") as server:
        url = server.url + "/v1"
        wrong = openai.OpenAI(base_url=url, api_key="wrong")
        with pytest.raises(openai.AuthenticationError, match="API key is wrong"):
            wrong.models.list()
        client = openai.OpenAI(base_url=url, api_key="right", max_retries=0)
        with pytest.raises(openai.NotFoundError) as missing:
            client.chat.completions.create(model="gpt-4o", messages=[TURN])
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as bad:
            client.chat.completions.create(model=NAME, messages=[TURN], temperature=-1)
        assert bad.value.param == "temperature"
        engine.most = 0
        with pytest.raises(openai.InternalServerError) as full:
            client.chat.completions.create(model=NAME, messages=[TURN])
        assert full.value.status_code == 503


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl(server: Running) -> None:
    body = json.dumps({"messages": [TURN], "stream": True})
    ask = ["curl", "-sN", server.url + CHAT, "-H", "Content-Type: application/json", "-d", body]
    done = subprocess.run(ask, capture_output=True, text=True, check=True, timeout=20)
    assert done.stdout.startswith("data: {")
    assert done.stdout.endswith("data: [DONE]\n\n")


def test_langchain(server: Running) -> None:
    langchain = pytest.importorskip("langchain_openai")
    chat = langchain.ChatOpenAI(base_url=server.url + "/v1", api_key="none", model=NAME)
    assert chat.invoke("Who?").content == TEXT
    turns = [("system", "Be brief."), ("human", "Who?")]
    assert "".join(chunk.content for chunk in chat.stream(turns)) == TEXT
    assert [answer.content for answer in chat.batch(["a", "b"])] == [TEXT, TEXT]
