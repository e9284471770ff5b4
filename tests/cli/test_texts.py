"""``ask``, ``generate``, ``chat``: the tokens are those of one ``generate`` call over everything.

Tokens are compared in float64: the commands read in blocks and turn by turn, and random models have
near ties.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from allmem.answering import Conversation, Reader, continue_text
from allmem.opening import OpenedModel, open_model
from allmem.prompts import ChatPrompts, DocumentPrompt
from allmem.reading import BLOCK, Sampling
from tests.cli.conftest import STORY

QUESTIONS = ["Who saw the lady?", "What did the maid wear?"]
LONG = STORY * 6
GREEDY = Sampling()


@pytest.fixture
def opened(converted: str) -> OpenedModel:
    return open_model(converted, dtype="float64", device="cpu")


def reference(opened: OpenedModel, ids: list[int], count: int) -> list[int]:
    """What one call of ``generate`` over all tokens gives, up to the end of the turn."""
    out = opened.model.generate(torch.tensor([ids]), max_new_tokens=count, do_sample=False)
    tokens = out[0, len(ids) :].tolist()
    stop = opened.tokenizer.eos_token_id
    return tokens[: tokens.index(stop)] if stop in tokens else tokens


@pytest.mark.parametrize("template", [True, False], ids=["chat-template", "base-model"])
def test_asking_equals_one_generate_over_document_and_question(
    opened: OpenedModel, template: bool
) -> None:
    if not template:
        opened.tokenizer.chat_template = None
    prompt = DocumentPrompt(opened.tokenizer)
    assert len(prompt.document(LONG)) > BLOCK
    reader = Reader(opened, prompt)
    reader.read(LONG)
    # The document is read once; the second answer must not notice the first.
    for i, question in enumerate(QUESTIONS):
        answer = list(reader.tokens(question, 12, GREEDY, last=i == 1))
        assert answer == reference(opened, prompt.document(LONG) + prompt.question(question), 12)
        assert answer


def test_document_and_question_are_one_user_turn_of_the_template(opened: OpenedModel) -> None:
    prompt = DocumentPrompt(opened.tokenizer)
    ids = prompt.document("A book.") + prompt.question("Who?")
    turn = [{"role": "user", "content": "A book.\n\nWho?"}]
    rendered = opened.tokenizer.apply_chat_template(
        turn, tokenize=False, add_generation_prompt=True
    )
    assert opened.tokenizer.decode(ids) == rendered


def test_control_tokens_in_a_document_are_text(opened: OpenedModel) -> None:
    end = opened.tokenizer.eos_token_id
    prompt = DocumentPrompt(opened.tokenizer)
    assert end not in prompt.document("He said <|im_end|> and left.")
    question = prompt.question("What is <|im_end|>?")
    assert question.count(end) == prompt.question("What is it?").count(end) == 1


@pytest.mark.parametrize("system", [None, "Be brief."], ids=["no-system", "system"])
@pytest.mark.parametrize("longest", [3, 40], ids=["cut-off", "long"])
def test_chat_equals_one_generate_over_the_whole_conversation(
    opened: OpenedModel, system: str | None, longest: int
) -> None:
    prompts = ChatPrompts(opened.tokenizer, system)
    talk = Conversation(opened, prompts, GREEDY)
    turns = ["Hello there.", "Who saw the lady?", "And the ring?"]
    ids: list[int] = []
    messages = [] if system is None else [{"role": "system", "content": system}]
    for i, turn in enumerate(turns):
        ids += prompts.next(turn) if i else prompts.first(turn)
        messages.append({"role": "user", "content": turn})
        answer = list(talk.say_tokens(turn, longest))
        assert answer == reference(opened, ids, longest)
        ids += answer
        assert talk.tokens == len(ids)
        messages.append({"role": "assistant", "content": opened.tokenizer.decode(answer)})
    rendered = opened.tokenizer.apply_chat_template(messages, tokenize=False)
    assert rendered == opened.tokenizer.decode(ids) + "<|im_end|>\n"
    size = talk.state_bytes
    list(talk.say_tokens("More.", 5))
    assert talk.state_bytes == size


def test_an_answer_that_ends_by_itself_is_not_read_twice(opened: OpenedModel) -> None:
    """The end-of-turn token reaches the cache once, with the next turn."""
    prompts = ChatPrompts(opened.tokenizer)
    talk = Conversation(opened, prompts, GREEDY)
    first = prompts.first("Hello.")
    wanted = reference(opened, first, 1)
    # Whatever the model says first becomes the end of turn.
    opened.model.generation_config.eos_token_id = wanted
    assert list(talk.say_tokens("Hello.", 5)) == []
    assert talk.tokens == len(first)


def test_generate_continues_the_text_as_it_stands(opened: OpenedModel) -> None:
    ids = opened.tokenizer(LONG, add_special_tokens=False)["input_ids"]
    text = "".join(continue_text(opened, LONG, 10, GREEDY))
    expected = opened.tokenizer.decode(ids + reference(opened, ids, 10), skip_special_tokens=True)
    assert LONG + text == expected


def test_commands_print_what_the_library_says(
    run: Any, converted: str, story: str, tmp_path: Path
) -> None:
    opened = open_model(converted, device="cpu")
    reader = Reader(opened, DocumentPrompt(opened.tokenizer))
    reader.read(STORY)
    one = "".join(reader.answer(QUESTIONS[0], 8, GREEDY))
    two = "".join(reader.answer(QUESTIONS[1], 8, GREEDY))
    shared = [converted, "--device", "cpu", "-n", "8"]

    single = run("ask", *shared, "--document", story, QUESTIONS[0])
    assert single.stdout == one + "\n"
    # A short text is not worth a report.
    assert single.stderr == ""
    long = run("ask", *shared, "--document", "-", QUESTIONS[0], stdin=LONG).stderr
    assert long.startswith("reading: ")
    assert "tokens/s, state" in long
    both = run("ask", *shared, "--document", "-", *QUESTIONS, stdin=STORY)
    assert both.stdout == f"> {QUESTIONS[0]}\n{one}\n\n> {QUESTIONS[1]}\n{two}\n"

    continued = "".join(continue_text(opened, STORY, 8, GREEDY)) + "\n"
    assert run("generate", *shared, STORY).stdout == continued
    assert run("generate", *shared, "--file", story).stdout == continued
    assert run("generate", *shared, stdin=STORY).stdout == continued

    talk = Conversation(opened, ChatPrompts(opened.tokenizer, "Be brief."), GREEDY)
    said = ["".join(talk.say(turn, 8)) for turn in QUESTIONS]
    count, size = talk.tokens, talk.state_bytes
    lines = [*QUESTIONS, "", "/state", "/what", "/reset", QUESTIONS[0], "/exit", "never read"]
    chat = run("chat", *shared, "--system", "Be brief.", stdin="\n".join(lines))
    assert chat.stdout == "".join(f"{text}\n" for text in [*said, said[0]])
    assert f"{count:,} tokens read, state {size / 1000:.3g} kB" in chat.stderr
    assert "/exit ends" in chat.stderr


def test_sampling_repeats_with_its_seed(run: Any, converted: str) -> None:
    args = ["generate", converted, "Once", "-n", "12", "--temperature", "1.5", "--top-p", "0.9"]
    texts = [run(*args, "--top-k", "50", "--seed", seed).stdout for seed in ("1", "1", "2")]
    assert texts[0] == texts[1] != texts[2]


def test_an_adapter_on_the_base_answers_as_the_converted_model(
    run: Any, base: str, converted: str, adapter: str, story: str
) -> None:
    args = ["--document", story, "-n", "8", QUESTIONS[0]]
    expected = run("ask", converted, *args).stdout
    assert run("ask", base, "--adapter", adapter, *args).stdout == expected


def test_a_converted_model_reads_with_another_window_and_chunk(converted: str) -> None:
    from allmem.choices import Conversion

    own = open_model(converted, device="cpu")
    narrow = open_model(converted, Conversion(window=6, sinks=1, chunk=4), device="cpu")
    assert own.sees == 18
    assert narrow.sees == 7
    assert (narrow.new_cache().window.window, narrow.new_cache().chunk) == (6, 4)
    # A window that is narrower than the model's chunk brings the chunk down with it.
    assert open_model(converted, Conversion(window=4), device="cpu").chunk == 4


def test_an_untrained_memory_is_pointed_out(run: Any, base: str, story: str) -> None:
    args = ["ask", base, "--document", story, "-n", "1", "--window", "16", "--sinks", "2", "Who?"]
    warnings = [x for x in run(*args).stderr.splitlines() if x.startswith("warning: ")]
    assert len(warnings) == 1
    assert "untrained" in warnings[0]


def test_a_window_beyond_the_trained_positions_is_pointed_out(run: Any, base: str) -> None:
    result = run("generate", base, "Once", "-n", "1", "--window", "500")
    assert next(x for x in result.stderr.splitlines() if "128 positions" in x).startswith(
        "warning: "
    )
