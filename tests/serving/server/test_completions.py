"""Texts to be continued."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.serving.server.fake import TEXT, Running

PATH = "/v1/completions"


def test_a_text_is_continued(server: Running, tokenizer: Any) -> None:
    answer = server.post(PATH, prompt="Once", max_tokens=50).json()
    assert answer["object"] == "text_completion"
    assert answer["choices"] == [
        {"index": 0, "text": TEXT, "logprobs": None, "finish_reason": "stop"}
    ]
    assert list(server.engine.requests[0].prompt) == tokenizer("Once")["input_ids"]
    assert server.post(PATH, prompt="Once").json()["usage"]["completion_tokens"] <= 16


def test_a_prompt_may_hold_control_tokens(server: Running, tokenizer: Any) -> None:
    server.post(PATH, prompt="<|im_start|>user\n")
    first = server.engine.requests[0].prompt[0]
    assert first == tokenizer.convert_tokens_to_ids("<|im_start|>")


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ([5, 6, 7], [(5, 6, 7)]),
        ([[5, 6], [7]], [(5, 6), (7,)]),
        (["T", "h"], None),
    ],
    ids=["ids", "several-ids", "several-texts"],
)
def test_prompts_have_four_forms(
    server: Running, tokenizer: Any, prompt: Any, read: list[tuple[int, ...]] | None
) -> None:
    read = read or [tuple(tokenizer(text)["input_ids"]) for text in prompt]
    answer = server.post(PATH, prompt=prompt, n=2, max_tokens=50).json()
    asked = sorted(request.prompt for request in server.engine.requests)
    assert asked == sorted(read * 2)
    assert [choice["index"] for choice in answer["choices"]] == list(range(2 * len(read)))
    assert answer["usage"]["prompt_tokens"] == sum(map(len, read))


def test_a_stream_adds_up(server: Running) -> None:
    body = {"prompt": ["a", "b"], "stream_options": {"include_usage": True}, "max_tokens": 50}
    lines = server.post(PATH, stream=True, logprobs=1, **body).text.split("\n\n")[:-2]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines]
    for index in (0, 1):
        mine = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        assert "".join(choice["text"] for choice in mine) == TEXT
        assert mine[-1]["finish_reason"] == "stop"
        offsets = [at for choice in mine for at in choice["logprobs"]["text_offset"]]
        assert offsets[0] == 0
        assert offsets == sorted(offsets)
    assert chunks[-1]["usage"]["prompt_tokens"] == 2


def test_logprobs_have_lists_of_one_length(server: Running) -> None:
    server.engine.text = "an 🫐"
    body: dict[str, Any] = {"prompt": "a", "max_tokens": 50}
    told = server.post(PATH, logprobs=2, **body).json()["choices"][0]["logprobs"]
    assert len({len(values) for values in told.values()}) == 1
    assert told["text_offset"][0] == 0
    assert told["text_offset"][-1] == len("an ")
    assert all(len(top) == 2 for top in told["top_logprobs"])
    assert set(told["token_logprobs"]) == {-0.5}
    none = server.post(PATH, logprobs=0, **body).json()["choices"][0]["logprobs"]
    assert none["top_logprobs"] is None
    assert none["tokens"] == told["tokens"]
