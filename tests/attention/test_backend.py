"""Who computes: names, forcing, and refusals instead of silent substitutes."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

from allmem.attention import backend, blocks, use_backend, window_attention
from allmem.config import WindowConfig
from allmem.errors import AllMemError
from allmem.layout import Layout
from tests.attention.calls import CPU, SCALE, Text, feed

WINDOW = WindowConfig(6, 2)


@pytest.mark.parametrize("name", ["blocks", "flex", "naive"])
@pytest.mark.parametrize("window", [WINDOW, None], ids=["window", "full"])
def test_a_forced_backend_computes(name: str, window: WindowConfig | None) -> None:
    operation = "full_attention" if window is None else "window_attention"
    module = getattr(backend, name)
    called = mock.patch.object(module, operation, wraps=getattr(module, operation))
    with called as computes, use_backend(name):
        feed(Text.random([20]), window)
    computes.assert_called_once()


def test_the_choice_of_a_call_goes_before_the_forced_one() -> None:
    not_called = mock.patch.object(blocks, "window_attention", side_effect=AssertionError)
    with not_called, use_backend("blocks"):
        feed(Text.random([20]), WINDOW, backend="naive")


def test_forcing_ends_with_the_block_even_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), use_backend("naive"):
        raise ZeroDivisionError
    assert backend._switch.forced is None


def test_an_unknown_backend_names_the_nearest() -> None:
    with pytest.raises(AllMemError, match="'block'; did you mean 'blocks'"):
        feed(Text.random([20]), WINDOW, backend="block")
    with pytest.raises(AllMemError, match="did you mean 'flex'"), use_backend("flx"):
        pass


@pytest.mark.parametrize("window", [WINDOW, None], ids=["window", "full"])
def test_flex_refuses_a_backward_pass_on_a_cpu(window: WindowConfig | None) -> None:
    with pytest.raises(AllMemError, match="no backward pass on a CPU"):
        feed(Text.random([20], grad=True), window, backend="flex")


def test_q_sink_may_be_missing_only_where_it_equals_q() -> None:
    text = Text.random([9])
    q, _, k, v = text.leaves

    def attend(slots: int) -> torch.Tensor:
        layout = Layout.dense(0, 1, slots, CPU)
        cut = q[:, :, :slots], None, k[:, :, :slots], v[:, :, :slots]
        return window_attention(*cut, None, layout, WINDOW, scale=SCALE)[0]

    torch.testing.assert_close(attend(8), feed(text, WINDOW)[0][:, :, :8])
    with pytest.raises(AllMemError, match=r"reach position 8, beyond S \+ W - 1 = 7"):
        attend(9)


@pytest.mark.parametrize("wrong", ["slots", "heads", "keys"])
def test_shapes_that_do_not_fit_are_refused(wrong: str) -> None:
    text = Text.random([9], q_heads=3 if wrong == "heads" else 4)
    q, _, k, v = text.leaves
    if wrong == "keys":
        k = k[:, :, 1:]
    layout = Layout.dense(0, 1, 8 if wrong == "slots" else 9, CPU)
    with pytest.raises(AllMemError, match="attention: q"):
        window_attention(q, q, k, v, None, layout, WINDOW, scale=SCALE)
