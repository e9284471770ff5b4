"""KV policies in the packaged SmolLM2, at the bytes of a window that is much shorter than the
text."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import allmem
from allmem import AllMemError
from allmem.documents import READ, load_book
from allmem.models.modeling import AllMemForCausalLM
from allmem.models.sources import load_base, load_tokenizer, smollm2_file

pytestmark = [pytest.mark.smollm2, pytest.mark.slow, pytest.mark.timeout(900)]
WINDOW, SINKS = 256, 8


@pytest.fixture(scope="module")
def base() -> PreTrainedModel:
    try:
        return load_base(smollm2_file())
    except AllMemError as error:
        pytest.skip(str(error))


def encode(text: str) -> list[int]:
    return list(load_tokenizer(smollm2_file())(text, add_special_tokens=False).input_ids)


def model_of(base: PreTrainedModel, mixers: str, **options: Any) -> AllMemForCausalLM:
    own = {mixers: options} if options else None
    return allmem.convert(
        copy.deepcopy(base),
        window=WINDOW,
        sinks=SINKS,
        mixers=mixers,
        mixer_options=own,
        check=False,
    )


@torch.no_grad()
def losses(model: AllMemForCausalLM, ids: list[int]) -> Tensor:
    """[T - 1], in nats."""
    text = torch.tensor([ids])
    logits = model(input_ids=text[:, :-1]).logits[0].float()
    return torch.nn.functional.cross_entropy(logits, text[0, 1:], reduction="none")


def test_prose_is_predicted_about_as_well_as_with_a_window(base: PreTrainedModel) -> None:
    ids = encode(load_book(READ)[:8000])[:1200]
    beyond = {
        name: float(losses(model_of(base, name), ids)[WINDOW + SINKS :].mean())
        for name in ("full", "window", "ladder", "eviction", "blocks")
    }
    for name in ("ladder", "eviction", "blocks"):
        assert beyond["full"] < beyond[name] < beyond["window"] + 0.05
    # Blocks that are looked up are worth something, as is what queries look at.
    assert beyond["blocks"] < beyond["window"] - 0.01


def test_a_pass_key_beyond_the_window_is_found_in_a_block_or_for_a_question(
    base: PreTrainedModel,
) -> None:
    novel = encode(load_book(READ)[:8000])
    key = encode(" 48273")
    said = encode("\n\nThe pass key is 48273. Remember it. 48273 is the pass key.\n\n")
    question = encode("What is the pass key?\n\n")
    asked = encode("\n\nWhat is the pass key? The pass key is")
    text = [*novel[:200], *said, *novel[200:700], *asked, *key]
    assert len(text) - 200 - len(said) > WINDOW + SINKS
    loss = {
        name: float(losses(model_of(base, name), text)[-len(key) :].sum())
        for name in ("window", "blocks")
    }
    loss["question"] = float(
        losses(
            model_of(base, "eviction", priority=len(question), slots=WINDOW), [*question, *text]
        )[-len(key) :].sum()
    )
    assert loss["blocks"] < 0.7 * loss["window"]
    assert loss["question"] < 0.7 * loss["window"]
