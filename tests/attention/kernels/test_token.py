"""The kernel for one token against ``decode`` and the definition, in float64: rows alone, and rows
that lie anywhere in a pool."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from allmem.attention import RingState, decode, kernels, window_attention
from allmem.attention.kernels import choice
from allmem.config import WindowConfig
from allmem.kernels import say_once, use_kernels
from allmem.layout import Layout
from allmem.token_layout import TokenLayout
from tests.attention.calls import SCALE, Text
from tests.memory.kernels.problems import assert_near, guarded, guarded_results, untouched, wide

WINDOWS = {
    "one-split": WindowConfig(9, 4),
    "no-sinks": WindowConfig(21, 0),
    "sinks-across-blocks": WindowConfig(80, 70),
    "many-splits": WindowConfig(600, 3),
}
SIZES = {
    "grouped": (6, 2, 20, 12),
    "one-kv-head": (4, 1, 16, 16),
    "one-head": (1, 1, 3, 5),
    "every-head-its-own": (3, 3, 48, 40),
}
"""Q, K, E, Ev."""


def ring(rows: int, window: WindowConfig, text: Text, device: torch.device) -> RingState:
    """A ring full of numbers, as if much had been read."""
    L, dtype = window.sinks + window.window, wide(device)

    def random(size: int) -> Tensor:
        numbers = torch.randn(rows, text.k.shape[1], L, size, dtype=torch.float64)
        return guarded(numbers.to(device, dtype))

    return RingState(random(text.k.shape[3]), random(text.v.shape[3]))


def starts(window: WindowConfig) -> list[int]:
    """Before, in and after the sinks; before the ring is full, when it is, and turned over."""
    L = window.sinks + window.window
    return [0, max(window.sinks - 1, 0), window.sinks, L // 2, L - 1, L, 7 * L + 5]


def token(rows: int, sizes: Sequence[int], device: torch.device) -> Text:
    text = Text.random([1] * rows, *sizes)
    for name in ("q", "q_far", "k", "v"):
        # Heads after tokens in memory, as projections leave them.
        x = getattr(text, name).to(device, wide(device)).transpose(1, 2).contiguous()
        setattr(text, name, x.transpose(1, 2))
    return text


@pytest.mark.parametrize("sinks_turned", [True, False], ids=["q-sink", "one-query"])
@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS.keys())
def test_is_decoding(window: WindowConfig, sinks_turned: bool, device: torch.device) -> None:
    start = torch.tensor(starts(window), device=device)
    text = token(len(start), SIZES["grouped"], device)
    q_sink = text.q_far if sinks_turned else None
    check(text, q_sink, start, window, device)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_heads_of_any_number_and_size(sizes: Sequence[int], device: torch.device) -> None:
    window = WINDOWS["one-split"]
    start = torch.tensor(starts(window), device=device)
    text = token(len(start), sizes, device)
    check(text, text.q_far, start, window, device)


def check(
    text: Text, q_sink: Tensor | None, start: Tensor, window: WindowConfig, device: torch.device
) -> None:
    """Rows alone, and the same rows in the slots of a pool, in another order."""
    rows = len(start)
    layout = TokenLayout.next_of(start)
    alone = ring(rows, window, text, device)
    given = (text.q, q_sink, text.k, text.v)
    want, state = decode.window_attention(*given, alone.clone(), layout, window, scale=SCALE)
    slots = torch.randperm(2 * rows)[:rows].to(device)
    pool = ring(2 * rows, window, text, device)
    for kept, own in zip(pool.tensors().values(), alone.tensors().values(), strict=True):
        kept[slots] = own
    before = pool.clone()

    for found in (alone, pool.rows_in_place(slots)):
        with torch.no_grad(), guarded_results():
            out, after = kernels.window_attention(*given, found, layout, window, scale=SCALE)
        assert after is found
        assert_near(out, want, wide(device))
    others = torch.ones(2 * rows, dtype=torch.bool).index_fill_(0, slots.cpu(), False)
    for name, kept in pool.tensors().items():
        assert torch.equal(kept[slots], state.tensors()[name]), name
        assert torch.equal(alone.tensors()[name], state.tensors()[name]), name
        assert torch.equal(kept[others], before.tensors()[name][others]), name
        assert untouched(kept), name
        assert untouched(alone.tensors()[name]), name


def test_slots_that_no_token_has_reached_are_not_read(device: torch.device) -> None:
    window, text = WindowConfig(300, 2), token(2, SIZES["grouped"], device)
    start = torch.tensor([1, 270], device=device)
    state = ring(2, window, text, device)
    for row, read in enumerate(start.tolist()):
        for kept in state.tensors().values():
            kept[row, :, read:] = torch.nan
    layout = TokenLayout.next_of(start)
    with torch.no_grad(), guarded_results():
        out, _ = kernels.window_attention(
            text.q, text.q_far, text.k, text.v, state, layout, window, scale=SCALE
        )
    assert bool(out.isfinite().all())


def test_a_row_gets_the_same_bits_beside_others(device: torch.device) -> None:
    window, text = WINDOWS["many-splits"], token(3, SIZES["grouped"], device)
    state, start = ring(3, window, text, device), torch.tensor([700, 40, 5000], device=device)
    given = (text.q, text.q_far, text.k, text.v)

    def read(rows: slice) -> Tensor:
        now = RingState(state.keys[rows].clone(), state.values[rows].clone())
        layout = TokenLayout.next_of(start[rows])
        with torch.no_grad():
            return kernels.window_attention(
                *(x[rows] for x in given), now, layout, window, scale=SCALE
            )[0]

    together = read(slice(0, 3))
    for row in range(3):
        assert torch.equal(read(slice(row, row + 1))[0], together[row])


def test_bf16_is_added_up_wide(device: torch.device) -> None:
    window, text = WINDOWS["many-splits"], token(2, SIZES["grouped"], device)
    state = ring(2, window, text, device).map(lambda t: t.bfloat16())
    narrow = [x.bfloat16() for x in (text.q, text.q_far, text.k, text.v)]
    layout = TokenLayout.next_of(torch.tensor([700, 40], device=device))
    want, _ = decode.window_attention(
        *(x.double() for x in narrow), state.map(Tensor.double), layout, window, scale=SCALE
    )
    with torch.no_grad():
        out, _ = kernels.window_attention(*narrow, state, layout, window, scale=SCALE)
    assert out.dtype == torch.bfloat16
    assert_near(out, want, torch.bfloat16)


def test_a_text_token_by_token_is_the_definition(device: torch.device) -> None:
    window, tokens, rows = WindowConfig(7, 2), 40, 3
    text = Text.random([tokens] * rows)
    leaves = [x.to(device, wide(device)) for x in (text.q, text.q_sink(window), text.k, text.v)]
    layout = Layout.dense(0, rows, tokens, device)
    want, state = window_attention(*leaves, None, layout, window, scale=SCALE, backend="naive")
    pool = RingState.empty(5, 2, 5, 3, window, wide(device), device)
    slots = torch.tensor([4, 0, 3], device=device)
    for t in range(tokens):
        now = (x[:, :, t : t + 1] for x in leaves)
        with torch.no_grad(), use_kernels("triton"):
            out, _ = window_attention(
                *now,
                pool.rows_in_place(slots),
                TokenLayout.next_of(torch.full((rows,), t, device=device)),
                window,
                scale=SCALE,
            )
        assert_near(out[:, :, 0], want[:, :, t], wide(device))
    assert torch.equal(pool.keys[slots], state.keys)
    assert not pool.keys[[1, 2]].any()


def test_who_is_asked(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of one token that every row takes, without gradients, if triton was asked for."""
    window, text = WindowConfig(7, 2), token(2, SIZES["grouped"], device)
    given, calls = (text.q, text.q_far, text.k, text.v), []
    real = kernels.window_attention
    monkeypatch.setattr(
        kernels, "window_attention", lambda *a, **o: calls.append(1) or real(*a, **o)
    )

    def asked(name: str, lengths: list[int], backend: str | None = None) -> bool:
        calls.clear()
        layout = Layout.ragged(torch.tensor([5, 5]), torch.tensor(lengths), device)
        with use_kernels(name):
            window_attention(
                *given, ring(2, window, text, device), layout, window, scale=SCALE, backend=backend
            )
        return bool(calls)

    with torch.no_grad():
        assert asked("triton", [1, 1])
        assert not asked("torch", [1, 1])
        assert not asked("triton", [1, 0])
        assert not asked("triton", [1, 1], backend="naive")
    assert not asked("triton", [1, 1])


def test_what_it_cannot_compute_is_said_once(device: torch.device) -> None:
    say_once.cache_clear()
    large = RingState(*(torch.zeros(1, 1, 4, 264, device=device) for _ in range(2)))
    with torch.no_grad(), use_kernels("triton"):
        with pytest.warns(RuntimeWarning, match="attention heads of 264"):
            assert not kernels.chosen(large)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert not kernels.chosen(large)
    turned = RingState(*(torch.zeros(1, 1, 8, 4, device=device).mT for _ in range(2)))
    assert "contiguous" in (choice.cannot_run(turned) or "")
