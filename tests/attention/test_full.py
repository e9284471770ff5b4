"""Full attention against its definition, in float64."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from allmem.attention import GrowingState, blocks, full_attention
from allmem.layout import Layout
from tests.attention.calls import CPU, SCALE, Text, assert_close, feed, gradients, token_by_token


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 20), min_size=2, max_size=2), min_size=1, max_size=4),
    st.booleans(),
    st.integers(2, 9),
)
def test_any_split_equals_one_naive_call(
    splits: list[list[int]], aligned: bool, block: int
) -> None:
    splits = [[1, 1], *([n, n] if aligned else [n, m] for n, m in splits)]
    text = Text.random(torch.tensor(splits).sum(0).tolist(), grad=True)
    expected, expected_state = feed(text, None, backend="naive")
    with mock.patch.object(blocks, "BLOCK", block):
        out, state = feed(text, None, splits)
    assert_close(out, expected)
    assert_close(gradients(out, text.leaves), gradients(expected, text.leaves))
    assert_close([*state.tensors().values()], [*expected_state.tensors().values()])


@pytest.mark.parametrize("lengths", [[21], [21, 5, 0]], ids=str)
@pytest.mark.parametrize("backend", ["blocks", "flex", "naive"])
def test_token_by_token_equals_one_naive_call(lengths: list[int], backend: str) -> None:
    text = Text.random(lengths)
    expected, _ = feed(text, None, backend="naive")
    out, state = feed(text, None, token_by_token(lengths), backend=backend)
    assert_close(out, expected)
    assert state.keys.shape == (len(lengths), 2, 21, 5)


def test_naive_is_softmax_over_all_keys_before() -> None:
    text = Text.random([6], 1, 1)
    out, _ = feed(text, None, backend="naive")
    q, _, k, v = (x[0, 0] for x in text.leaves)
    assert_close(out[0, 0, 4], torch.softmax(k[:5] @ q[4] * SCALE, 0) @ v[:5])


def test_the_token_at_p_lies_in_slot_p() -> None:
    text = Text.random([9, 4])
    _, state = feed(text, None, [[2, 4], [7, 0]])
    assert torch.equal(state.keys[0], text.k[0])
    assert torch.equal(state.keys[1, :, :4], text.k[1, :, :4])
    assert not state.keys[1, :, 4:].any()


def test_a_state_keeps_its_dtype() -> None:
    text = Text.random([9, 4])
    state = GrowingState.empty(2, 2, 5, 3, torch.float32, CPU)
    out, state = feed(text, None, [[2, 4], [7, 0]], state=state)
    assert out.dtype == torch.float64
    assert state.keys.dtype == torch.float32


@pytest.mark.parametrize("count", [1, 6], ids="N{}".format)
@pytest.mark.parametrize("backend", ["blocks", "flex", "naive"])
def test_a_row_continues_when_longer_ones_have_left_the_batch(backend: str, count: int) -> None:
    text = Text.random([5 + count, 20])
    expected, _ = feed(text, None, backend="naive")
    _, state = feed(text, None, [[5, 20]])
    row = state.select(torch.tensor([0]))
    layout = Layout.dense(5, 1, count, CPU)
    q, _, k, v = (x[:1, :, 5 : 5 + count] for x in text.leaves)
    out, _ = full_attention(q, k, v, row, layout, scale=SCALE, backend=backend)
    assert_close(out, expected[:1, :, 5 : 5 + count])
