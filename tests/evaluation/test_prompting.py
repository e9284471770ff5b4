"""What a model reads: cut in the middle, wrapped in the template, side by side with what it
shares."""

from __future__ import annotations

import random
from typing import Any

import pytest

from allmem.evaluation.grouping import alike_together, common_beginning
from allmem.evaluation.local import LocalModel
from allmem.evaluation.prompting import cut_middle, make_prompt
from allmem.evaluation.task import Request, Setting
from tests.distill.chats import make_student

TEXT = "The river rises in the north, and what the old man said about it was true. " * 9


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return LocalModel(make_student(), "student")


class Nameless:
    """A model of which no tokenizer is known."""

    tokenizer = None


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


def test_without_a_tokenizer_the_server_does_it_all() -> None:
    nameless: Any = Nameless()
    prompt = make_prompt(Request(TEXT, 8, longest=20), nameless, Setting())
    assert prompt.ids is None
    assert prompt.cut == 0
    assert prompt.messages == [{"role": "user", "content": TEXT}]


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
