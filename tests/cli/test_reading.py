"""Streaming: text comes out whole however it was cut into tokens, and reading reports itself."""

from __future__ import annotations

import itertools

import pytest
import torch

from allmem.errors import AllMemError
from allmem.opening import open_model
from allmem.reading import (
    PENDING,
    Detokenizer,
    Progress,
    Sampling,
    pieces_of_text,
    read,
    until,
)
from tests.cli.conftest import make_tokenizer


@pytest.mark.parametrize("text", ["The maid", "Blåbær 🫐🚢 naïve", " leading", "\n\n  x ", "é" * 9])
def test_pieces_add_up_to_the_text(text: str) -> None:
    tokenizer = make_tokenizer()
    ids = tokenizer(text)["input_ids"]
    pieces = list(pieces_of_text(tokenizer, ids))
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_pieces_continue_a_text_that_ends_within_a_character() -> None:
    tokenizer = make_tokenizer()
    ids = tokenizer("so 🚢 sails")["input_ids"]
    for cut in range(1, len(ids)):
        shown = tokenizer.decode(ids[:cut])
        pieces = "".join(pieces_of_text(tokenizer, ids[cut:], before=ids[:cut]))
        if "\ufffd" not in shown:
            assert shown + pieces == "so 🚢 sails"


def test_bytes_that_never_become_text_are_shown_in_time() -> None:
    tokenizer = make_tokenizer()
    broken = tokenizer("🚢")["input_ids"][:1]
    text = Detokenizer(tokenizer)
    pieces = [text.push(token) for token in broken * 100]
    assert "\ufffd" in "".join(pieces[:PENDING])
    # Control tokens are no text, however many there are.
    assert [text.push(tokenizer.eos_token_id) for _ in range(100)][PENDING:] == [""] * (
        100 - PENDING
    )
    assert text.push(tokenizer("so")["input_ids"][0]) == tokenizer.decode(
        tokenizer("so")["input_ids"][:1]
    )


def test_a_stop_ends_the_text_once_something_was_said() -> None:
    assert "".join(until(["\n", " ", " an", " iron\nring", "never"], "\n")) == "an iron"
    assert "".join(until([" \n", "a\n", "b"], None)) == "a\nb"


def test_reading_in_blocks_reports_each_and_gives_the_same_logits(converted: str) -> None:
    opened = open_model(converted, dtype="float64", device="cpu")
    ids = list(range(5, 75))
    reports: list[Progress] = []
    logits = read(opened.model, ids, opened.new_cache(), report=reports.append, block=32)
    with torch.no_grad():
        whole = opened.model(torch.tensor([ids])).logits[0, -1]
    assert torch.allclose(logits, whole, atol=1e-9)
    assert [(r.tokens, r.total) for r in reports] == [(32, 70), (64, 70), (70, 70)]
    # The state is there from the first token on and does not grow.
    assert len({r.state_bytes for r in reports}) == 1
    assert all(a.seconds <= b.seconds for a, b in itertools.pairwise(reports))


def test_there_must_be_something_to_read(converted: str) -> None:
    opened = open_model(converted, device="cpu")
    with pytest.raises(AllMemError, match="nothing to read"):
        read(opened.model, [], opened.new_cache())


def test_sampling_stays_within_its_limits() -> None:
    logits = torch.tensor([3.0, 2.9, 0.0, -9.0])
    cpu = torch.device("cpu")
    assert Sampling().chooser(cpu)(logits) == 0
    drawn = Sampling(temperature=5.0, top_k=2, seed=0).chooser(cpu)
    assert {drawn(logits) for _ in range(60)} == {0, 1}
    nucleus = Sampling(temperature=1.0, top_p=0.6, seed=0).chooser(cpu)
    assert {nucleus(logits) for _ in range(60)} == {0, 1}
    anything = Sampling(temperature=9.0, seed=0).chooser(cpu)
    assert {anything(logits) for _ in range(200)} == {0, 1, 2, 3}
