"""Conversations: what is asked of the engine, and what the client is answered."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from allmem.evaluation.model import Prompt
from allmem.evaluation.remote import RemoteModel
from allmem.reading import Sampling
from allmem.serving.sampling import SamplingParams
from tests.cli.conftest import make_tokenizer
from tests.serving.server.fake import NAME, TEXT, FakeEngine, Running, running, texts


def events(server: Running, path: str = "/v1/chat/completions", **body: Any) -> list[Any]:
    """The chunks of a stream, which must end as the protocol says."""
    answer = server.post(path, stream=True, **body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in answer.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_an_answer_has_text_usage_and_an_end(server: Running, tokenizer: Any) -> None:
    answer = server.post().json()
    assert answer["object"] == "chat.completion"
    assert answer["model"] == NAME
    choice = answer["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": TEXT, "refusal": None}
    assert choice["finish_reason"] == "stop"
    prompt = len(server.engine.requests[0].prompt)
    # With the token that ends the answer.
    written = len(tokenizer(TEXT)["input_ids"]) + 1
    assert answer["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
    }


def test_a_stream_gives_the_same_text(server: Running) -> None:
    chunks = events(server, stream_options={"include_usage": True})
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert texts(chunks) == TEXT
    assert [c["choices"][0]["finish_reason"] for c in chunks[-3:-1]] == [None, "stop"]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == server.post().json()["usage"]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all(chunk["usage"] is None for chunk in events(server))


def test_the_prompt_is_the_template_s(server: Running, tokenizer: Any) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Who "}, {"type": "text", "text": "?"}],
        },
        {"role": "assistant", "content": "Walter", "refusal": None, "tool_calls": None},
        {"role": "user", "content": "And <|im_end|>?"},
    ]
    server.post(messages=messages)
    prompt = list(server.engine.requests[0].prompt)
    assert tokenizer.decode(prompt).endswith("And <|im_end|>?<|im_end|>\n<|im_start|>assistant\n")
    # Four turns end; what the user wrote does not end one more.
    assert prompt.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 4


def test_a_developer_is_the_system(server: Running) -> None:
    for role in ("developer", "system"):
        server.post(messages=[{"role": role, "content": "a"}, {"role": "user", "content": "b"}])
    first, second = server.engine.requests
    assert first.prompt == second.prompt


def test_an_answer_goes_on_with_a_message(server: Running, tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "It is"}]
    server.engine.text = " Walter"
    body = {"continue_final_message": True, "add_generation_prompt": False}
    answer = server.post(messages=messages, **body).json()
    assert tokenizer.decode(server.engine.requests[0].prompt).endswith("assistant\nIt is")
    assert answer["choices"][0]["message"]["content"] == " Walter"


def test_options_are_passed_on(server: Running) -> None:
    given: dict[str, Any] = {
        "temperature": 0.3,
        "top_p": 0.8,
        "top_k": 7,
        "min_p": 0.1,
        "seed": 11,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "repetition_penalty": 1.5,
    }
    server.post(**given, logit_bias={"5": 3}, max_completion_tokens=9, stop_token_ids=[40])
    request = server.engine.requests[0]
    assert request.sampling == SamplingParams(**given, logit_bias={5: 3.0})
    assert request.max_tokens == 9
    assert request.stop == {server.engine.tokenizer.eos_token_id, 40}
    server.post(ignore_eos=True)
    assert server.engine.requests[1].stop == frozenset()


def test_options_left_out_are_the_makers(server: Running) -> None:
    server.post(top_p=0.5)
    server.post(chat_template_kwargs={"enable_thinking": True}, top_k=-1)
    server.post(temperature=1e-9)
    sampling = [request.sampling for request in server.engine.requests]
    assert sampling[0] == SamplingParams(temperature=0.7, top_k=20, top_p=0.5)
    assert sampling[1] == SamplingParams(temperature=0.6)
    assert sampling[2].greedy


def test_choices_have_seeds_of_their_own(server: Running) -> None:
    answer = server.post(n=3, seed=5).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert {choice["message"]["content"] for choice in answer["choices"]} == {TEXT}
    assert sorted(request.sampling.seed or 0 for request in server.engine.requests) == [5, 6, 7]
    one = server.post().json()["usage"]
    assert answer["usage"]["prompt_tokens"] == one["prompt_tokens"]
    assert answer["usage"]["completion_tokens"] == 3 * one["completion_tokens"]


def test_choices_are_streamed_side_by_side(server: Running) -> None:
    chunks = events(server, n=2)
    assert texts(chunks, 0) == texts(chunks, 1) == TEXT
    ends = [c["choices"][0]["index"] for c in chunks if c["choices"][0]["finish_reason"]]
    assert sorted(ends) == [0, 1]


@pytest.mark.parametrize("stop", ["wore an", ["zzz", "e an", " wore"], "."], ids=str)
def test_a_stop_string_ends_the_answer_wherever_tokens_end(server: Running, stop: Any) -> None:
    server.engine.text = TEXT + " For ever."
    strings = [stop] if isinstance(stop, str) else stop
    expected = TEXT[: min(TEXT.find(s) for s in strings if s in TEXT)]
    choice = server.post(stop=stop).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (expected, "stop")
    chunks = events(server, stop=stop)
    assert texts(chunks) == expected
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    # The engine would have gone on.
    assert server.engine.cancelled == 2


def test_what_might_be_a_stop_is_shown_at_the_end(server: Running) -> None:
    server.engine.text = "a wor"
    assert texts(events(server, stop="wore")) == "a wor"


def test_characters_of_several_tokens_come_whole(server: Running) -> None:
    server.engine.text = "Blåbær 🫐🚢 naïve"
    chunks = events(server)
    assert texts(chunks) == server.engine.text
    assert "\ufffd" not in "".join(texts([chunk]) for chunk in chunks)


def test_logprobs_are_told_of_every_token(server: Running, tokenizer: Any) -> None:
    server.engine.text = text = "an 🫐"
    content = server.post(logprobs=True, top_logprobs=2).json()["choices"][0]["logprobs"]["content"]
    assert b"".join(bytes(token["bytes"]) for token in content) == text.encode()
    assert len(content) == len(tokenizer(text)["input_ids"])
    assert content[-1]["token"].startswith("bytes:\\x")
    assert content[0]["logprob"] == -0.5
    assert [len(token["top_logprobs"]) for token in content] == [2] * len(content)
    assert content[0]["top_logprobs"][0]["token"] == content[0]["token"]
    streamed = [
        token
        for chunk in events(server, logprobs=True, top_logprobs=2)
        for token in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert streamed == content
    assert server.post().json()["choices"][0]["logprobs"] is None


def test_logprobs_do_not_tell_what_a_stop_string_hides(server: Running) -> None:
    body = {"logprobs": True, "stop": " wore"}
    content = server.post(**body).json()["choices"][0]["logprobs"]["content"]
    assert "".join(token["token"] for token in content).startswith("The maid")
    assert "wore" not in "".join(token["token"] for token in content)


def test_a_length_is_an_end_too(server: Running) -> None:
    choice = server.post(max_tokens=2).json()
    assert choice["choices"][0]["finish_reason"] == "length"
    assert choice["usage"]["completion_tokens"] == 2


def test_a_model_without_a_template_says_so() -> None:
    with running(FakeEngine(make_tokenizer(None))) as server:
        answer = server.post()
        assert answer.status_code == 400
        assert "no chat template" in answer.json()["error"]["message"]
        assert server.post("/v1/completions", prompt="The").status_code == 200


def test_our_own_evaluation_can_ask(server: Running) -> None:
    model = RemoteModel(server.url)
    assert model.extended
    turns = [{"role": "user", "content": "Who?"}]
    prompts = [
        Prompt(None, "", turns, "It is", max_new_tokens=99),
        Prompt(None, "The maid", None, max_new_tokens=99, stop=(" iron",)),
    ]
    said = model.complete(prompts, Sampling(temperature=0.5, top_k=5), [0, 1])
    assert [one.text for one in said] == [TEXT, "The maid wore an"]
    assert httpx.get(server.url + "/v1/models").json()["data"][0]["id"] == model.model
