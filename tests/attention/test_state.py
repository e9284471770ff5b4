"""What the ring holds where (a contract with other engines), and who may change it when."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from allmem.attention import RingState, ring_slots, window_attention
from allmem.config import WindowConfig
from allmem.layout import Layout
from tests.attention.calls import CPU, SCALE, Text, feed, token_by_token

WINDOW = WindowConfig(window=5, sinks=3)


def numbered(lengths: list[int]) -> Text:
    """Keys and values that hold their position plus one, since 0 marks a slot never written."""
    text = Text.random(lengths, 1, 1, 1, 1)
    position = torch.arange(1.0, max(lengths) + 1, dtype=torch.float64)[None, None, :, None]
    text.k = position.expand_as(text.k).clone()
    text.v = -text.k
    return text


def slots_by_hand(length: int) -> Tensor:
    held = torch.zeros(8, dtype=torch.float64)
    for p in range(length):
        held[p if p < 3 else 3 + (p - 3) % 5] = p + 1
    return held


@pytest.mark.parametrize("backend", ["blocks", "flex", "naive"])
@pytest.mark.parametrize(
    "splits",
    [
        [[23, 4]],
        [[2, 1], [2, 0], [7, 3], [12, 0]],
        token_by_token([23, 4]),
    ],
    ids=["one-call", "sinks-in-parts", "token-by-token"],
)
def test_the_token_at_p_lies_in_its_slot(splits: list[list[int]], backend: str) -> None:
    _, state = feed(numbered([23, 4]), WINDOW, splits, backend=backend)
    expected = torch.stack([slots_by_hand(23), slots_by_hand(4)])
    assert torch.equal(state.keys[:, 0, :, 0], expected)
    assert torch.equal(state.values[:, 0, :, 0], -expected)


def test_ring_slots() -> None:
    slots = ring_slots(torch.arange(14), WINDOW)
    assert slots.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 3, 4, 5, 6, 7, 3]


@pytest.mark.parametrize("count", [1, 6], ids="N{}".format)
def test_without_gradients_the_ring_is_written_in_place(count: int) -> None:
    text = Text.random([20 + count])
    state = RingState.empty(1, 2, 5, 3, WINDOW, torch.float64, CPU)
    with torch.no_grad():
        _, after = feed(text, WINDOW, [[20], [count]], state=state)
    assert after.keys.data_ptr() == state.keys.data_ptr()
    assert after.values.data_ptr() == state.values.data_ptr()
    assert state.keys.any()


@pytest.mark.parametrize("count", [1, 6], ids="N{}".format)
def test_with_gradients_the_ring_is_copied(count: int) -> None:
    text = Text.random([20 + count], grad=True)
    state = RingState.empty(1, 2, 5, 3, WINDOW, torch.float64, CPU)
    _, after = feed(text, WINDOW, [[20], [count]], state=state)
    assert not state.keys.any()
    assert after.keys.requires_grad


@pytest.mark.parametrize("count", [1, 6], ids="N{}".format)
def test_a_state_of_inference_mode_can_be_continued_outside(count: int) -> None:
    text = Text.random([20 + count])
    with torch.inference_mode():
        _, state = feed(Text(*(x[:, :, :20] for x in text.leaves), torch.tensor([20])), WINDOW)
    layout = Layout.dense(20, 1, count, CPU)
    q, q_sink, k, v = (x[:, :, 20:] for x in text.leaves)
    with torch.no_grad():
        out, _ = window_attention(q, q_sink, k, v, state, layout, WINDOW, scale=SCALE)
    torch.testing.assert_close(out, feed(text, WINDOW)[0][:, :, 20:])


def test_state_bytes_do_not_depend_on_what_was_read() -> None:
    sizes = {feed(Text.random([n]), WINDOW)[1].nbytes for n in (1, 7, 50)}
    assert sizes == {2 * (3 + 5) * (5 + 3) * 8}


def test_reordered_rows_continue_as_they_would_alone() -> None:
    text = Text.random([30, 30])
    expected, _ = feed(text, WINDOW, [[11, 11], [19, 19]])
    _, state = feed(Text(*(x[:, :, :11] for x in text.leaves), torch.tensor([11, 11])), WINDOW)
    state = state.select(torch.tensor([1, 0]))
    layout = Layout.dense(11, 2, 19, CPU)
    swapped = [x[[1, 0]] for x in (text.q, text.q_sink(WINDOW), text.k, text.v)]
    q, q_sink, k, v = (x[:, :, 11:] for x in swapped)
    out, _ = window_attention(q, q_sink, k, v, state, layout, WINDOW, scale=SCALE)
    assert torch.equal(out, expected[[1, 0], :, 11:])
