"""Window attention against its definition, in float64, and the promises beside it."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from allmem.attention import RingState, blocks, window_attention
from allmem.config import WindowConfig
from allmem.layout import Layout
from tests.attention.calls import CPU, SCALE, Text, assert_close, feed, gradients, token_by_token


@st.composite
def readings(draw: st.DrawFn) -> tuple[Text, WindowConfig, list[list[int]], int]:
    """A text of ragged rows, a window, a split that may leave rows out, a block size."""
    window = draw(st.integers(1, 17))
    sinks = min(draw(st.sampled_from([0, 1, 4])), window - 1)
    rows = draw(st.integers(1, 3))
    counts = st.integers(0, 23)
    if draw(st.booleans()):
        splits = [[n] * rows for n in draw(st.lists(counts, min_size=1, max_size=4))]
    else:
        row = st.lists(counts, min_size=rows, max_size=rows)
        splits = draw(st.lists(row, min_size=1, max_size=4))
    lengths = torch.tensor(splits).sum(0).tolist()
    if max(lengths) == 0:
        splits, lengths = [[1] * rows], [1] * rows
    kv_heads = draw(st.integers(1, 2))
    text = Text.random(
        lengths,
        kv_heads * draw(st.integers(1, 3)),
        kv_heads,
        draw(st.integers(1, 6)),
        draw(st.integers(1, 6)),
        grad=True,
        seed=draw(st.integers(0, 2**20)),
    )
    return text, WindowConfig(window, sinks), splits, draw(st.integers(1, 9))


@settings(max_examples=150, deadline=None)
@given(readings())
def test_any_split_equals_one_naive_call(reading: tuple) -> None:
    text, window, splits, block = reading
    expected, expected_state = feed(text, window, backend="naive")
    with mock.patch.object(blocks, "BLOCK", block):
        out, state = feed(text, window, splits)
        assert_close(out, expected)
        assert_close(gradients(out, text.leaves), gradients(expected, text.leaves))
    assert_close([*state.tensors().values()], [*expected_state.tensors().values()])


@pytest.mark.parametrize("grad", [False, True], ids=["in-place", "with-gradients"])
@pytest.mark.parametrize("lengths", [[45], [45, 45], [45, 7, 0, 30]], ids=str)
@pytest.mark.parametrize("sinks", [0, 1, 4], ids="S{}".format)
def test_token_by_token_equals_one_naive_call(sinks: int, lengths: list[int], grad: bool) -> None:
    window, text = WindowConfig(9, sinks), Text.random(lengths, grad=grad)
    expected, expected_state = feed(text, window, backend="naive")
    out, state = feed(text, window, token_by_token(lengths))
    assert_close(out, expected)
    assert_close([*state.tensors().values()], [*expected_state.tensors().values()])
    if grad:
        assert_close(gradients(out, text.leaves), gradients(expected, text.leaves))


@pytest.mark.parametrize("sinks", [0, 4], ids="S{}".format)
def test_continued_rows_of_several_blocks_equal_naive(sinks: int) -> None:
    window, lengths = WindowConfig(150, sinks), [420, 301]
    text = Text.random(lengths, 2, 1, grad=True)
    expected, _ = feed(text, window, backend="naive")
    out, _ = feed(text, window, [[3, 0], [260, 129], [157, 172]])
    assert_close(out, expected)
    assert_close(gradients(out, text.leaves), gradients(expected, text.leaves))


def test_naive_continues_its_own_state() -> None:
    window, text = WindowConfig(7, 2), Text.random([30, 21])
    expected, _ = feed(text, window, backend="naive")
    out, _ = feed(text, window, [[1, 0], [12, 20], [17, 1]], backend="naive")
    assert_close(out, expected)


def test_naive_is_softmax_over_the_keys_in_sight() -> None:
    window, text = WindowConfig(3, 1), Text.random([6], 1, 1)
    out, _ = feed(text, window, backend="naive")
    q, far, k, v = (x[0, 0] for x in text.leaves)
    # The last query stands at 5: it sees itself, 4 and 3, and the sink as from S + W - 1.
    scores = torch.stack([far[5] @ k[0], q[5] @ k[3], q[5] @ k[4], q[5] @ k[5]])
    assert_close(out[0, 0, 5], torch.softmax(scores * SCALE, 0) @ v[[0, 3, 4, 5]])


@pytest.mark.parametrize("backend", ["blocks", "flex", "naive"])
def test_later_tokens_change_nothing_before(backend: str) -> None:
    window, text = WindowConfig(6, 2), Text.random([40])
    before, _ = feed(text, window, backend=backend)
    for x in text.leaves:
        x[:, :, 25:] = 1e3
    after, _ = feed(text, window, backend=backend)
    assert torch.equal(before[:, :, :25], after[:, :, :25])
    assert not torch.equal(before[:, :, 25:], after[:, :, 25:])


@pytest.mark.parametrize("backend", ["blocks", "flex", "naive"])
@pytest.mark.parametrize("padding", [float("nan"), float("inf"), 1e30], ids=str)
def test_padding_influences_nothing(padding: float, backend: str) -> None:
    window, text = WindowConfig(6, 2), Text.random([19, 1, 30])
    splits = [[4, 0, 25], [15, 1, 5]]
    expected, expected_state = feed(text, window, splits, backend=backend, padding=0.0)
    out, state = feed(text, window, splits, backend=backend, padding=padding)
    assert torch.equal(out, expected)
    assert torch.equal(state.keys, expected_state.keys)
    assert torch.equal(state.values, expected_state.values)


def test_padding_outputs_are_zero_and_pass_no_gradient() -> None:
    window, text = WindowConfig(6, 2), Text.random([4, 20])
    layout = Layout.ragged(torch.zeros(2), text.lengths, CPU)
    inputs = [x.clone() for x in (text.q, text.q_sink(window), text.k, text.v)]
    for x in inputs:
        x[0, :, 4:] = torch.nan
        x.requires_grad_()
    out, _ = window_attention(*inputs, None, layout, window, scale=SCALE)
    assert (out[0, :, 4:] == 0).all()
    # The gradient of a loss over padding is as meaningless as its inputs: it too may be NaN.
    weights = torch.ones_like(out)
    weights[0, :, 4:] = torch.nan
    for gradient in torch.autograd.grad(out, inputs, weights):
        assert gradient.isfinite().all()
        assert (gradient[0, :, 4:] == 0).all()


def test_a_padded_row_gives_what_it_gives_alone() -> None:
    window, text = WindowConfig(6, 2), Text.random([19, 33])
    alone = Text(*(x[:1, :, :19] for x in text.leaves), text.lengths[:1])
    together, _ = feed(text, window, [[11, 30], [8, 3]])
    expected, _ = feed(alone, window, [[11], [8]])
    assert_close(together[:1, :, :19], expected)


def test_rows_without_a_token_keep_their_state() -> None:
    window, text = WindowConfig(6, 2), Text.random([9, 9])
    _, state = feed(text, window)
    for slots in (1, 5):
        kept = state.clone()
        layout = Layout.ragged(torch.tensor([9, 9]), torch.tensor([0, slots]), CPU)
        q, k, v = torch.rand(2, 4, slots, 5), torch.rand(2, 2, slots, 5), torch.rand(2, 2, slots, 3)
        q, k, v = q.double(), k.double(), v.double()
        _, state = window_attention(q, q, k, v, state, layout, window, scale=SCALE)
        assert torch.equal(state.keys[0], kept.keys[0])
        assert not torch.equal(state.keys[1], kept.keys[1])


def test_a_call_without_slots_changes_nothing() -> None:
    window, text = WindowConfig(6, 2), Text.random([9])
    _, state = feed(text, window)
    kept = state.clone()
    layout = Layout.dense(9, 1, 0, CPU)
    empty = [x[:, :, :0] for x in text.leaves]
    out, state = window_attention(*empty, state, layout, window, scale=SCALE)
    assert out.shape == (1, 4, 0, 3)
    assert torch.equal(state.keys, kept.keys)


def test_heads_of_bfloat16_are_near_the_float64_result() -> None:
    window = WindowConfig(32, 4)
    rounded = Text.random([200], 4, 2, 16, 16, dtype=torch.bfloat16)
    exact = Text(*(x.double() for x in rounded.leaves), rounded.lengths)
    expected, _ = feed(exact, window, backend="naive")
    for splits in (None, [[70], [1], [129]], token_by_token([200])):
        out, state = feed(rounded, window, splits)
        assert out.dtype == state.keys.dtype == torch.bfloat16
        # Weights and values are rounded to 8 bits each; values are of order one.
        torch.testing.assert_close(out.double(), expected, rtol=0, atol=0.03)


def test_a_state_keeps_its_dtype() -> None:
    window, text = WindowConfig(6, 2), Text.random([30])
    state = RingState.empty(1, 2, 5, 3, window, torch.bfloat16, CPU)
    out, state = feed(text, window, [[10], [1], [19]], state=state)
    assert out.dtype == torch.float64
    assert state.keys.dtype == state.values.dtype == torch.bfloat16
