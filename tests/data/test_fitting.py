"""Samples that are too long lose text, but never a word of the assistant's."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from allmem.data.chat import ChatEncoder, Piece
from allmem.data.conversation import Conversation, Dropped, Message
from allmem.data.fitting import KEPT, fit, to_sample
from tests.data.test_masks import conversations
from tests.data.tokenizers import small_tokenizer

TOKENIZER = small_tokenizer("qwen3")
ENCODER = ChatEncoder(TOKENIZER)
DOCUMENT = "北方的河流每年春天都会涨水 😀 the river rises in 1984. " * 8


def of_kind(pieces: list[Piece], *kinds: str) -> list[list[int]]:
    return [piece.ids for piece in pieces if piece.kind in kinds]


def size(pieces: list[Piece]) -> int:
    return sum(len(piece.ids) for piece in pieces)


@settings(max_examples=150, deadline=None)
@given(
    conversation=conversations(),
    share=st.floats(0.1, 1.0),
    cut=st.sampled_from(["middle", "left"]),
)
def test_a_cut_sample_fits_and_keeps_every_response_whole(
    conversation: Conversation, share: float, cut: str
) -> None:
    whole = ENCODER.encode(Conversation(conversation.messages, DOCUMENT))
    limit = int(size(whole) * share)
    try:
        cut_pieces = fit(whole, limit, TOKENIZER, cut)  # type: ignore[arg-type]
    except Dropped as error:
        assert error.reason == "response_too_long"  # noqa: PT017 (other cases go on)
        removable = sum(max(0, len(ids) - KEPT) for ids in of_kind(whole, "document", "prompt"))
        assert size(whole) - removable > limit
        return
    assert size(cut_pieces) <= limit
    kept = ("response", "control", "system")
    assert of_kind(cut_pieces, *kept) == of_kind(whole, *kept)


@settings(max_examples=50, deadline=None)
@given(limit=st.integers(60, 150), cut=st.sampled_from(["middle", "left"]))
def test_text_is_cut_between_characters_and_only_where_asked(limit: int, cut: str) -> None:
    turns = (Message("user", "Who?"), Message("assistant", "He."))
    whole = ENCODER.encode(Conversation(turns, DOCUMENT))
    pieces = fit(whole, limit, TOKENIZER, cut)  # type: ignore[arg-type]
    text = next(piece.text for piece in pieces if piece.kind == "document")
    assert "\ufffd" not in text
    # So many tokens lie at most between two borders of characters in this vocabulary.
    assert limit - size(pieces) <= 12
    assert DOCUMENT.strip().endswith(text[-5:])
    if cut == "left":
        assert DOCUMENT.strip().endswith(text)
    else:
        assert DOCUMENT.startswith(text[:5])


def test_a_short_sample_is_left_as_it_is() -> None:
    pieces = ENCODER.encode(Conversation((Message("user", "a"), Message("assistant", "b"))))
    assert fit(pieces, size(pieces), TOKENIZER) == pieces


def test_the_document_gives_way_before_the_question() -> None:
    question = "Who said so? " * 5
    turns = (Message("user", question), Message("assistant", "He."))
    whole = ENCODER.encode(Conversation(turns, DOCUMENT))
    pieces = fit(whole, size(whole) - 50, TOKENIZER)
    assert of_kind(pieces, "prompt") == of_kind(whole, "prompt")


@settings(max_examples=50, deadline=None)
@given(limit=st.integers(40, 300))
def test_a_long_response_is_skipped_or_loses_its_end_and_the_end_of_its_turn(limit: int) -> None:
    turns = (Message("user", "Go on."), Message("assistant", DOCUMENT.strip()))
    whole = ENCODER.encode(Conversation(turns))
    assume(size(whole) > limit)
    with pytest.raises(Dropped, match="response_too_long"):
        fit(whole, limit, TOKENIZER)
    pieces = fit(whole, limit, TOKENIZER, long_response="cut")
    sample = to_sample(pieces)
    assert limit - 8 <= len(sample) <= limit
    text = TOKENIZER.decode(sample.ids[sample.response])
    assert "\ufffd" not in text
    assert DOCUMENT.startswith(text)


def test_a_sample_without_a_learned_token_is_dropped() -> None:
    with pytest.raises(Dropped, match="no_response_tokens"):
        to_sample([Piece("control", [1, 2], "ab"), Piece("prompt", [3], "c")])
