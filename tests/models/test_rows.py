"""Rows of a batch do not see one another: padding, holes, packing and reordering change no number.

Masks and positions say where tokens stand; every row must give what it gives alone.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from allmem import AllMemError
from allmem.models.cache import AllMemCache
from allmem.models.modeling import AllMemForCausalLM
from tests.models.tiny import V, assert_close, logits, read, text, tiny_model

T = 33


@pytest.fixture(scope="module", params=["qwen3", "gemma3", "smollm3"])
def model(request: pytest.FixtureRequest) -> AllMemForCausalLM:
    return tiny_model(request.param, dtype=torch.float64)


@pytest.fixture(scope="module")
def one_model() -> AllMemForCausalLM:
    return tiny_model(dtype=torch.float64)


MASKS = {
    "left": [[0] * 5 + [1] * 28, [1] * 33, [0] * 19 + [1] * 14],
    "right": [[1] * 21 + [0] * 12, [1] * 33, [1] + [0] * 32],
    "holes": [
        [1] * 9 + [0] * 7 + [1] * 17,
        [0, 1] * 16 + [1],
        [1] * 14 + [0] + [1] * 3 + [0] * 10 + [1] * 5,
    ],
    "mixed": [[0] * 3 + [1] * 20 + [0] * 10, [1] * 30 + [0] * 3, [0] * 32 + [1]],
    "a-row-of-padding": [[0] * 33, [1] * 33, [1] * 12 + [0] * 21],
    "all-padding": [[0] * 33] * 3,
}


def assert_rows_as_alone(
    model: AllMemForCausalLM, ids: Tensor, mask: Tensor, found: Tensor, tolerance: float = 1e-8
) -> None:
    """Every row's tokens have the logits that they have without the rest of the batch."""
    assert torch.isfinite(found).all()
    for row in range(len(ids)):
        kept = mask[row].bool()
        if kept.any():
            alone = logits(model, ids[row, kept][None])[0]
            assert_close(found[row][kept], alone, tolerance)


@pytest.mark.parametrize("case", MASKS)
def test_a_padded_row_gives_what_it_gives_alone(model: AllMemForCausalLM, case: str) -> None:
    ids, mask = text(3, T), torch.tensor(MASKS[case])
    assert_rows_as_alone(model, ids, mask, logits(model, ids, attention_mask=mask))


@pytest.mark.parametrize("case", MASKS)
def test_what_padding_holds_is_of_no_consequence(model: AllMemForCausalLM, case: str) -> None:
    ids, mask = text(3, T), torch.tensor(MASKS[case])
    other = torch.where(mask.bool(), ids, text(3, T, seed=9))
    kept = mask.bool()
    assert torch.equal(
        logits(model, ids, attention_mask=mask)[kept],
        logits(model, other, attention_mask=mask)[kept],
    )


@pytest.mark.parametrize("case", MASKS)
@pytest.mark.parametrize("whole_mask", [True, False], ids=["mask-so-far", "mask-of-the-call"])
def test_padding_over_three_calls_with_a_cache(
    model: AllMemForCausalLM, case: str, whole_mask: bool
) -> None:
    """Two turns of a batch of conversations, then single tokens."""
    ids, mask = text(3, T), torch.tensor(MASKS[case])
    cache = AllMemCache(model.config)
    outputs = []
    for first, last in [(0, 7), (7, 20), *((i, i + 1) for i in range(20, T))]:
        known = mask[:, :last] if whole_mask else mask[:, first:last]
        outputs.append(
            logits(model, ids[:, first:last], attention_mask=known, past_key_values=cache)
        )
    assert_rows_as_alone(model, ids, mask, torch.cat(outputs, 1))
    assert cache.seen.tolist() == mask.sum(1).tolist()
    assert cache.get_seq_length() == T


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_mask_and_any_split(one_model: AllMemForCausalLM, data: st.DataObject) -> None:
    rows = data.draw(
        st.lists(st.lists(st.booleans(), min_size=T, max_size=T), min_size=1, max_size=3)
    )
    cuts = sorted(data.draw(st.sets(st.integers(1, T - 1), max_size=4)))
    mask = torch.tensor(rows).long()
    ids = text(len(rows), T, seed=int(mask.sum()))
    cache = AllMemCache(one_model.config)
    edges = [0, *cuts, T]
    found = [
        logits(one_model, ids[:, a:b], attention_mask=mask[:, :b], past_key_values=cache)
        for a, b in itertools.pairwise(edges)
    ]
    assert_rows_as_alone(one_model, ids, mask, torch.cat(found, 1))


def test_gradients_do_not_cross_rows_or_padding(one_model: AllMemForCausalLM) -> None:
    ids, mask = text(2, T), torch.ones(2, T, dtype=torch.long)
    mask[0, :6] = mask[0, 12:15] = 0
    embeds = one_model.get_input_embeddings()(ids).detach().requires_grad_()
    out = one_model(inputs_embeds=embeds, attention_mask=mask, use_cache=False).logits
    out[0][mask[0].bool()].square().sum().backward()
    assert embeds.grad is not None
    assert torch.isfinite(embeds.grad).all()
    assert not embeds.grad[1].any()
    assert not embeds.grad[0, mask[0] == 0].any()
    assert embeds.grad[0, mask[0] == 1].abs().sum(-1).min() > 0


PACKINGS = {
    "two-documents": [[20, 13], [5, 28]],
    "one-row-unpacked": [[33], [1, 32]],
    "tiny-documents": [[1, 1, 31], [2, 3, 5, 7, 16]],
}


@pytest.mark.parametrize("case", PACKINGS)
def test_packed_documents_do_not_see_each_other(model: AllMemForCausalLM, case: str) -> None:
    lengths = PACKINGS[case]
    ids = text(2, T)
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in lengths])
    for extra in ({"use_cache": False}, {"use_cache": True}):
        packed = logits(model, ids, position_ids=positions, **extra)
        for row, pieces in enumerate(lengths):
            found = packed[row].split(pieces)
            for document, piece in zip(ids[row].split(pieces), found, strict=True):
                assert_close(piece, logits(model, document[None])[0], 1e-8)


def test_packed_documents_in_the_teacher_do_not_see_each_other() -> None:
    model = tiny_model()
    ids = text(1, T)
    positions = torch.cat([torch.arange(20), torch.arange(13)])[None]
    taught = logits(model, ids, position_ids=positions, full_attention=True)
    for span in (slice(0, 20), slice(20, T)):
        alone = logits(model, ids[:, span], full_attention=True)
        assert_close(taught[:, span], alone, 1e-5)


def test_nothing_of_packed_documents_is_continued(one_model: AllMemForCausalLM) -> None:
    positions = torch.cat([torch.arange(20), torch.arange(13)])[None]
    cache = read(one_model, text(1, T), position_ids=positions)
    assert not cache.is_initialized
    later = text(1, 9, seed=3)
    assert_close(logits(one_model, later, past_key_values=cache), logits(one_model, later), 1e-12)


def test_packed_documents_cannot_continue_a_cache(one_model: AllMemForCausalLM) -> None:
    cache = read(one_model, text(1, 5))
    positions = torch.cat([torch.arange(5, 9), torch.arange(6)])[None]
    with pytest.raises(AllMemError, match="packed documents cannot continue a cache"):
        logits(one_model, text(1, 10), position_ids=positions, past_key_values=cache)


def test_plain_positions_change_nothing(one_model: AllMemForCausalLM) -> None:
    ids = text(2, T)
    positions = torch.arange(T)[None]
    assert torch.equal(logits(one_model, ids, position_ids=positions), logits(one_model, ids))
    cache = read(one_model, ids[:, :20])
    rest = logits(one_model, ids[:, 20:], position_ids=positions[:, 20:], past_key_values=cache)
    assert_close(rest, logits(one_model, ids)[:, 20:], 1e-8)


def test_the_order_of_a_batch_is_of_no_consequence(model: AllMemForCausalLM) -> None:
    ids = text(4, T)
    order = torch.tensor([2, 0, 3, 1])
    assert_close(logits(model, ids[order]), logits(model, ids)[order], 1e-10)


ROW_OPERATIONS = {
    "select": (lambda c: c.batch_select_indices(torch.tensor([2, 0])), [2, 0]),
    "select-twice-the-same": (lambda c: c.batch_select_indices(torch.tensor([1, 1, 2])), [1, 1, 2]),
    "repeat": (lambda c: c.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
    "reorder": (lambda c: c.reorder_cache(torch.tensor([2, 1, 0])), [2, 1, 0]),
}


@pytest.mark.parametrize("case", ROW_OPERATIONS)
def test_rows_of_a_cache_can_be_rearranged(model: AllMemForCausalLM, case: str) -> None:
    """Also where rows have read different numbers of tokens."""
    operation, rows = ROW_OPERATIONS[case]
    ids, mask = text(3, 23), torch.ones(3, 23, dtype=torch.long)
    mask[0, :6] = mask[1, 9:12] = 0
    cache = read(model, ids, attention_mask=mask)
    operation(cache)
    later = text(len(rows), 14, seed=4)
    found = logits(model, later, past_key_values=cache)
    for i, row in enumerate(rows):
        whole = torch.cat([ids[row, mask[row].bool()], later[i]])[None]
        assert_close(found[i], logits(model, whole)[0, -14:], 1e-8)


def test_rows_of_an_empty_cache_can_be_rearranged(one_model: AllMemForCausalLM) -> None:
    cache = AllMemCache(one_model.config)
    cache.batch_select_indices(torch.tensor([0]))
    cache.batch_repeat_interleave(3)
    cache.reorder_cache(torch.tensor([0]))
    assert logits(one_model, text(2, 5), past_key_values=cache).shape == (2, 5, V)


@pytest.mark.parametrize("shape", [(2,), (2, 4), (2, 1, 5, 5)], ids=str)
def test_a_mask_of_another_shape_is_refused(
    one_model: AllMemForCausalLM, shape: tuple[int, ...]
) -> None:
    with pytest.raises(AllMemError, match="attention_mask has the shape"):
        logits(one_model, text(2, 5), attention_mask=torch.ones(shape))
