"""``generate`` of transformers on a converted model: all ways of decoding, batching, continuing.

Tokens are compared in float64, since random models have near ties.
"""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, TextIteratorStreamer
from transformers.generation.streamers import BaseStreamer

from allmem import AllMemError
from allmem.models import modeling
from allmem.models.cache import AllMemCache
from allmem.models.modeling import AllMemForCausalLM
from tests.models.tiny import (
    EOS,
    PAD,
    C,
    V,
    W,
    assert_close,
    batch_of,
    logits,
    logits_in_calls,
    read,
    text,
    tiny_model,
)

NEW = 2 * W
# Padding that a model generates looks, in a later prompt without a mask, like padding.
GREEDY: dict[str, Any] = {
    "max_new_tokens": NEW,
    "do_sample": False,
    "eos_token_id": None,
    "suppress_tokens": [PAD],
}


@pytest.fixture(scope="module")
def model() -> AllMemForCausalLM:
    return tiny_model(dtype=torch.float64)


def greedy_by_hand(model: AllMemForCausalLM, ids: Tensor, count: int = NEW) -> Tensor:
    """The tokens that reading everything anew for each of them gives."""
    for _ in range(count):
        last = logits(model, ids, use_cache=False)[:, -1]
        last[:, PAD] = -torch.inf
        ids = torch.cat([ids, last.argmax(-1, keepdim=True)], dim=1)
    return ids


@pytest.fixture(scope="module")
def story(model: AllMemForCausalLM) -> Tensor:
    """A prompt longer than the window, continued greedily by hand, [2, T + NEW]."""
    return greedy_by_hand(model, text(2, 2 * W))


@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no-cache"])
def test_greedy_decoding_is_the_argmax_of_reading_it_all(
    model: AllMemForCausalLM, story: Tensor, use_cache: bool
) -> None:
    found = model.generate(story[:, : 2 * W], use_cache=use_cache, **GREEDY)
    assert torch.equal(found, story)
    assert len(set(story[0, 2 * W :].tolist())) > 3, "the text must not be a loop"


def test_sampling_with_a_seed_repeats_itself(model: AllMemForCausalLM) -> None:
    def sample(seed: int, **options: Any) -> Tensor:
        torch.manual_seed(seed)
        return model.generate(
            text(2, 17), do_sample=True, max_new_tokens=NEW, eos_token_id=None, **options
        )

    assert torch.equal(sample(1), sample(1))
    assert torch.equal(sample(1), sample(1, use_cache=False))
    assert not torch.equal(sample(1), sample(2))


@pytest.mark.parametrize("sampled", [False, True], ids=["beams", "sampled-beams"])
def test_beams_follow_their_own_memories(model: AllMemForCausalLM, sampled: bool) -> None:
    """With a cache that is reordered, and without any: the same beams and scores."""

    def search(use_cache: bool) -> Any:
        torch.manual_seed(0)
        return model.generate(
            text(2, 17),
            num_beams=3,
            num_return_sequences=2,
            do_sample=sampled,
            max_new_tokens=NEW,
            use_cache=use_cache,
            eos_token_id=None,
            return_dict_in_generate=True,
            output_scores=True,
        )

    cached, plain = search(True), search(False)
    assert cached.sequences.shape == (4, 17 + NEW)
    assert torch.equal(cached.sequences, plain.sequences)
    assert_close(cached.sequences_scores, plain.sequences_scores, 1e-8)


def test_several_sequences_per_prompt_are_samples_of_their_own(model: AllMemForCausalLM) -> None:
    torch.manual_seed(0)
    out = model.generate(
        text(2, 17), do_sample=True, num_return_sequences=3, max_new_tokens=9, eos_token_id=None
    )
    assert out.shape == (6, 26)
    assert torch.equal(out[:, :17], text(2, 17).repeat_interleave(3, 0))
    assert len({tuple(row.tolist()) for row in out}) == 6


@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no-cache"])
def test_prompts_of_unequal_length_get_their_own_tokens(
    model: AllMemForCausalLM, use_cache: bool
) -> None:
    lengths = [19, 3, 11]
    prompts = [text(1, n, seed=n)[0].tolist() for n in lengths]
    ids, mask = batch_of([[None] * (19 - len(p)) + p for p in prompts])
    found = model.generate(ids, attention_mask=mask, use_cache=use_cache, **GREEDY)
    for row, prompt in enumerate(prompts):
        alone = model.generate(torch.tensor([prompt]), **GREEDY)
        assert torch.equal(found[row, 19:], alone[0, len(prompt) :])


def test_a_row_that_is_done_does_not_disturb_the_others(model: AllMemForCausalLM) -> None:
    """A finished row is fed padding while the others go on."""
    ids = text(2, 17)
    free = model.generate(ids, **GREEDY)
    stop = int(free[0, 17 + 4])
    found = model.generate(ids, **{**GREEDY, "eos_token_id": stop}, pad_token_id=PAD)
    end = found[1].tolist().index(stop, 17) + 1 if stop in found[1, 17:] else found.shape[1]
    assert torch.equal(found[1, :end], free[1, :end])


@pytest.mark.parametrize("length", [6, 40], ids=["short-turn", "turn-longer-than-the-past"])
@pytest.mark.parametrize("prompt", ["everything", "only-new-tokens"])
def test_a_conversation_continues_from_its_cache(
    model: AllMemForCausalLM, story: Tensor, prompt: str, length: int
) -> None:
    cache = AllMemCache(model.config)
    first = model.generate(story[:, :15], past_key_values=cache, **GREEDY)
    turn = text(2, length, seed=8)
    # The last generated token was not read yet.
    whole = torch.cat([first, turn], dim=1)
    asked = whole if prompt == "everything" else whole[:, cache.get_seq_length() :]
    found = model.generate(asked, past_key_values=cache, **GREEDY)
    expected = model.generate(whole, **GREEDY)
    assert torch.equal(found[:, -NEW:], expected[:, -NEW:])
    assert torch.equal(found[:, : asked.shape[1]], asked)


def test_a_padded_turn_continues_from_its_cache(model: AllMemForCausalLM) -> None:
    """The turns of a batch are as long as the longest: holes before the second turn."""
    firsts = [text(1, n, seed=n)[0].tolist() for n in (14, 9)]
    seconds = [text(1, n, seed=n)[0].tolist() for n in (4, 7)]
    ids, mask = batch_of([[None] * (14 - len(p)) + p for p in firsts])
    later, later_mask = batch_of([[None] * (7 - len(p)) + p for p in seconds])
    whole, whole_mask = torch.cat([ids, later], 1), torch.cat([mask, later_mask], 1)
    for prompt, known in [(whole, whole_mask), (later, later_mask)]:
        cache = read(model, ids, attention_mask=mask)
        found = model.generate(prompt, attention_mask=known, past_key_values=cache, **GREEDY)
        for row in range(2):
            alone = model.generate(torch.tensor([firsts[row] + seconds[row]]), **GREEDY)
            assert torch.equal(found[row, -NEW:], alone[0, -NEW:])


def test_new_tokens_longer_than_what_was_read_continue_with_a_mask(
    model: AllMemForCausalLM,
) -> None:
    """A short past and a long turn look like a whole text; a mask of both says otherwise."""
    past, turn = text(1, 4), text(1, 20, seed=2)
    whole = torch.cat([past, turn], 1)
    mask = torch.ones_like(whole)
    found = model.generate(turn, attention_mask=mask, past_key_values=read(model, past), **GREEDY)
    assert torch.equal(found[:, -NEW:], model.generate(whole, **GREEDY)[:, -NEW:])


class _Recorder(BaseStreamer):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ended = False

    def put(self, value: Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.ended = True


def test_a_streamer_sees_every_token(model: AllMemForCausalLM, story: Tensor) -> None:
    streamer = _Recorder()
    model.generate(story[:1, : 2 * W], streamer=streamer, **GREEDY)
    assert streamer.tokens == story[0].tolist()
    assert streamer.ended


class _Letters:
    """A tokenizer that knows only how to decode: a letter for a token."""

    def decode(self, tokens: list[int], **_: Any) -> str:
        return "".join(chr(64 + int(t)) for t in tokens)


def test_a_text_can_be_streamed_from_a_thread(model: AllMemForCausalLM, story: Tensor) -> None:
    streamer = TextIteratorStreamer(_Letters(), skip_prompt=True, timeout=60)
    task = threading.Thread(
        target=model.generate,
        args=(story[:1, : 2 * W],),
        kwargs={"streamer": streamer, **GREEDY},
    )
    task.start()
    streamed = "".join(streamer)
    task.join()
    assert streamed == _Letters().decode(story[0, 2 * W :].tolist())


@pytest.mark.parametrize("size", [1, C, 7, 1000])
def test_a_prompt_can_be_read_in_chunks(model: AllMemForCausalLM, story: Tensor, size: int) -> None:
    found = model.generate(story[:, : 2 * W], prefill_chunk_size=size, **GREEDY)
    assert torch.equal(found, story)


def test_a_padded_prompt_can_be_read_in_chunks(model: AllMemForCausalLM) -> None:
    ids, mask = batch_of([[None] * 8 + text(1, 11)[0].tolist(), text(1, 19)[0].tolist()])
    found = model.generate(ids, attention_mask=mask, prefill_chunk_size=5, **GREEDY)
    assert torch.equal(found, model.generate(ids, attention_mask=mask, **GREEDY))


def test_embeddings_take_the_place_of_tokens(model: AllMemForCausalLM, story: Tensor) -> None:
    prompt = story[:, : 2 * W]
    embeds = model.get_input_embeddings()(prompt).detach()
    assert torch.equal(model.generate(inputs_embeds=embeds, **GREEDY), story[:, 2 * W :])
    assert torch.equal(logits_of_embeds(model, embeds), logits(model, prompt))


@torch.no_grad()
def logits_of_embeds(model: AllMemForCausalLM, embeds: Tensor) -> Tensor:
    return model(inputs_embeds=embeds).logits


def test_either_tokens_or_embeddings(model: AllMemForCausalLM) -> None:
    embeds = model.get_input_embeddings()(text(1, 4))
    with pytest.raises(AllMemError, match="either"):
        model(input_ids=text(1, 4), inputs_embeds=embeds)
    with pytest.raises(AllMemError, match="either"):
        model()


def test_a_cache_of_another_batch_size_is_refused(model: AllMemForCausalLM) -> None:
    cache = read(model, text(2, 9))
    with pytest.raises(AllMemError, match="holds 2 sequences, the input has 3"):
        model.generate(text(3, 12), past_key_values=cache, max_new_tokens=2)


@pytest.mark.parametrize("name", ["static", "quantized", "offloaded", "dynamic"])
def test_other_caches_of_transformers_are_refused(model: AllMemForCausalLM, name: str) -> None:
    with pytest.raises(AllMemError, match=f"cache_implementation = '{name}' does not apply"):
        model.generate(text(1, 5), cache_implementation=name, max_new_tokens=2)


def test_a_dynamic_cache_is_refused(model: AllMemForCausalLM) -> None:
    with pytest.raises(AllMemError, match="needs an AllMemCache"):
        model(text(1, 5), past_key_values=DynamicCache())


def test_assisted_decoding_is_refused(model: AllMemForCausalLM) -> None:
    """It would take back tokens that were written into memory."""
    with pytest.raises(AllMemError, match="assisted decoding"):
        model.generate(text(1, 9), prompt_lookup_num_tokens=3, max_new_tokens=20)


def test_the_teacher_reads_without_a_cache(model: AllMemForCausalLM) -> None:
    cache = AllMemCache(model.config)
    with pytest.raises(AllMemError, match="without a cache"):
        model(text(1, 5), past_key_values=cache, full_attention=True)
    assert model(text(1, 5), full_attention=True, use_cache=True).past_key_values is None


@pytest.mark.parametrize("block", [1, 7, 16])
@pytest.mark.parametrize("keep", [0, 1, 7, 30])
def test_a_long_text_is_read_in_blocks(
    model: AllMemForCausalLM, monkeypatch: pytest.MonkeyPatch, block: int, keep: int
) -> None:
    """With padding at the start and in the middle; the mask may cover an earlier call."""
    ids, mask = text(2, 41), torch.ones(2, 41, dtype=torch.long)
    mask[0, :9] = mask[0, 20:31] = mask[1, 13:15] = 0
    whole = logits(model, ids, attention_mask=mask)
    monkeypatch.setattr(modeling, "READ_BLOCK", block)
    found = logits(model, ids, attention_mask=mask, logits_to_keep=keep)
    expected = whole[:, -keep:] if keep else whole
    kept = mask[:, -expected.shape[1] :].bool()
    assert found.shape == expected.shape
    assert_close(found[kept], expected[kept], 1e-8)

    cache = AllMemCache(model.config)
    logits(model, ids[:, :6], attention_mask=mask[:, :6], past_key_values=cache)
    rest = logits(
        model, ids[:, 6:], attention_mask=mask, past_key_values=cache, logits_to_keep=keep
    )
    expected = whole[:, 6:] if not keep else whole[:, -keep:]
    assert_close(rest[kept[:, -rest.shape[1] :]], expected[kept[:, -rest.shape[1] :]], 1e-8)


def test_embeddings_and_packed_documents_are_read_in_blocks(
    model: AllMemForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = text(1, 41)
    embeds = model.get_input_embeddings()(ids).detach()
    positions = torch.cat([torch.arange(18), torch.arange(23)])[None]
    whole, packed = logits(model, ids), logits(model, ids, position_ids=positions)
    monkeypatch.setattr(modeling, "READ_BLOCK", 8)
    assert_close(logits_of_embeds(model, embeds), whole, 1e-8)
    assert_close(logits(model, ids, position_ids=positions), packed, 1e-8)
    plain = torch.arange(41)[None]
    assert_close(logits(model, ids, position_ids=plain), whole, 1e-8)
    last = logits(model, ids, position_ids=positions, logits_to_keep=3)
    assert_close(last, packed[:, -3:], 1e-8)


def test_logits_to_keep_without_blocks(model: AllMemForCausalLM) -> None:
    ids = text(2, 21)
    whole = logits(model, ids)
    for keep in (1, 7, 21, 30):
        assert_close(logits(model, ids, logits_to_keep=keep), whole[:, -keep:], 1e-12)
    chosen = torch.tensor([0, 5, 20])
    assert_close(logits(model, ids, logits_to_keep=chosen), whole[:, chosen], 1e-12)


def test_an_empty_call_is_refused_in_words(model: AllMemForCausalLM) -> None:
    with pytest.raises(AllMemError, match="no tokens"):
        logits(model, text(1, 5)[:, :0])


def test_a_cache_may_read_with_another_window_and_chunk(model: AllMemForCausalLM) -> None:
    """One checkpoint serves every setting: as if it had been converted with these sizes."""
    from allmem import WindowConfig

    ids = text(2, 40)
    cache = AllMemCache(model.config, window=WindowConfig(9, 2), chunk=4)
    other = tiny_model(window=9, sinks=2, chunk=4, dtype=torch.float64)
    found = logits_in_calls(model, ids.split(11, 1), cache)
    assert_close(found, logits(other, ids), 1e-8)
    with pytest.raises(AllMemError, match="smaller than chunk"):
        AllMemCache(model.config, window=WindowConfig(4))
    with pytest.raises(AllMemError, match="smaller than chunk"):
        AllMemCache(model.config, chunk=W + 1)


def test_a_batch_that_ends_early_is_padded(model: AllMemForCausalLM) -> None:
    out = model.generate(text(2, 9), max_new_tokens=5, do_sample=False, eos_token_id=EOS)
    assert out.shape[0] == 2
    assert int(out.max()) < V
