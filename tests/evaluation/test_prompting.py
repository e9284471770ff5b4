"""What a model reads: cut in the middle, wrapped in the template, side by side with what it
shares."""

from __future__ import annotations

import random
from typing import Any

import pytest

from allmem.errors import AllMemError
from allmem.evaluation.grouping import alike_together, common_beginning
from allmem.evaluation.local import LocalModel
from allmem.evaluation.prompting import cut_middle, make_prompt
from allmem.evaluation.remote import RemoteModel
from allmem.evaluation.task import Request, Setting
from tests.distill.chats import make_student

TEXT = "The river rises in the north, and what the old man said about it was true. " * 9


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return LocalModel(make_student(), "student")


class Far(RemoteModel):
    """A server that is never asked."""

    def __init__(self, reach: int | None = None, tokenizer: Any = None) -> None:
        self.label, self.reach, self.tokenizer = "far", reach, tokenizer


def test_both_ends_of_a_long_text_are_kept(model: LocalModel) -> None:
    tokenizer = model.tokenizer
    ids = tokenizer(TEXT)["input_ids"]
    for longest in (len(ids) - 1, 31, 30, 2):
        kept, cut = cut_middle(tokenizer, TEXT, longest)
        half = longest // 2
        assert kept == tokenizer.decode(ids[:half]) + tokenizer.decode(ids[-half:])
        assert cut == len(ids) - 2 * half
    assert cut_middle(tokenizer, TEXT, len(ids)) == (TEXT, 0)


def test_the_template_is_not_cut(model: LocalModel) -> None:
    request = Request(TEXT, 8, system="Be kind.", answer_prefix="It was", longest=20)
    prompt = make_prompt(request, model, Setting())
    assert prompt.ids is not None
    said = model.tokenizer.decode(prompt.ids)
    assert said.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nThe river")
    assert said.endswith("It was")
    assert "</think>" in said, "thinking is off unless asked for"
    assert prompt.cut == len(model.tokenizer(TEXT)["input_ids"]) - 20
    assert prompt.text in said
    thinking = make_prompt(request, model, Setting(thinking=True))
    assert "</think>" not in model.tokenizer.decode(thinking.ids)


def test_the_user_s_limits_come_before_the_benchmark_s(model: LocalModel) -> None:
    request = Request(TEXT, 8, chat=False, longest=20)
    prompt = make_prompt(request, model, Setting(truncate=10, max_new_tokens=3))
    assert prompt.messages is None
    assert prompt.ids == model.tokenizer(prompt.text)["input_ids"]
    assert prompt.cut == len(model.tokenizer(TEXT)["input_ids"]) - 10
    assert prompt.max_new_tokens == 3
    assert make_prompt(request, model, Setting()).max_new_tokens == 8


def test_without_a_tokenizer_the_server_does_it_all_but_cut() -> None:
    prompt = make_prompt(Request(TEXT, 8), Far(), Setting())
    assert prompt.ids is None
    assert prompt.cut == 0
    assert prompt.messages == [{"role": "user", "content": TEXT}]
    for request, setting in (
        (Request(TEXT, 8, longest=20), Setting()),
        (Request(TEXT, 8), Setting(truncate=20)),
        (Request(TEXT, 30, least_new_tokens=8), Setting()),
    ):
        with pytest.raises(AllMemError, match=r"far are cut at 20 tokens.*--tokenizer"):
            make_prompt(request, Far(20), setting)


@pytest.mark.parametrize("longest", [10**6, 150, 110])
@pytest.mark.parametrize("chats", [True, False])
def test_a_server_is_never_asked_beyond_its_reach(
    model: LocalModel, longest: int, chats: bool
) -> None:
    """Prompt, template and answer together; a model that is loaded here reads on."""
    server = Far(140, model.tokenizer)
    request = Request(TEXT, 40, chat=chats, longest=longest)
    prompt = make_prompt(request, server, Setting())
    assert prompt.ids is not None
    assert 130 < len(prompt.ids) + prompt.max_new_tokens <= 140
    assert prompt.max_new_tokens == 40
    assert prompt.cut > 0
    # What is sent is what was cut.
    assert prompt.text in model.tokenizer.decode(prompt.ids)
    assert prompt.messages is None or prompt.messages[0]["content"] == prompt.text
    server.bounded = False
    beyond = make_prompt(request, server, Setting())
    assert len(beyond.ids or ()) + 40 > 140
    with pytest.raises(AllMemError, match=r"200 tokens leaves no room.*140 tokens of far"):
        make_prompt(request, Far(140, model.tokenizer), Setting(max_new_tokens=200))


def test_a_long_answer_is_shortened_before_the_prompt_is_cut(model: LocalModel) -> None:
    request = Request(TEXT, 10_000, chat=False, longest=10**6, least_new_tokens=8)
    length = len(model.tokenizer(TEXT)["input_ids"])
    room = {reach: make_prompt(request, Far(reach, model.tokenizer), Setting()) for reach in
            (length + 100, length + 8, length, 20_000)}  # fmt: skip
    assert [p.max_new_tokens for p in room.values()] == [100, 8, 8, 10_000]
    assert [p.cut > 0 for p in room.values()] == [False, False, True, False]


def test_texts_that_begin_alike_come_side_by_side() -> None:
    contexts = {name: name * (50 + i) for i, name in enumerate("abcdefgh")}
    texts = [contexts[name] + f" question {i}" for i in range(5) for name in contexts]
    random.Random(0).shuffle(texts)
    order = alike_together(texts)
    assert sorted(order) == list(range(40))
    first = [texts[i][0] for i in order]
    assert first == sorted(first), "each context once, the shorter first"
    # Those of another block do not change an order.
    assert alike_together(texts * 2)[:40] != order
    assert alike_together([*texts, *map(str, range(24)), *texts])[:64] == alike_together(
        [*texts, *map(str, range(24))]
    )


def test_a_common_beginning_is_counted() -> None:
    source = random.Random(1)
    for _ in range(200):
        one, other = ("".join(source.choices("ab", k=source.randint(0, 6))) for _ in range(2))
        pairs = list(zip(one, other, strict=False))
        expected = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
        assert common_beginning(one, other) == expected
        assert common_beginning(list(one), list(other)) == expected
