"""The flex backend, forward, on a CPU: its results, and its tiles, which only GPUs look at."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from allmem.attention import flex
from allmem.config import WindowConfig
from allmem.layout import Layout
from tests.attention.calls import CPU, Text, assert_close, feed

SPLITS = {
    "one-call": [[300, 300]],
    "ragged": [[300, 170]],
    "continued": [[3, 0], [150, 140], [147, 30]],
}


@pytest.mark.parametrize("splits", SPLITS.values(), ids=SPLITS)
@pytest.mark.parametrize(
    "window", [(9, 0), (9, 4), (130, 2), (299, 1), (400, 130)], ids="W{0[0]}-S{0[1]}".format
)
def test_window_equals_naive(window: tuple[int, int], splits: list[list[int]]) -> None:
    text = Text.random(torch.tensor(splits).sum(0).tolist(), 3, 1)
    expected, expected_state = feed(text, WindowConfig(*window), backend="naive")
    out, state = feed(text, WindowConfig(*window), splits, backend="flex")
    assert_close(out, expected)
    assert_close(state.keys, expected_state.keys)


@pytest.mark.parametrize("splits", SPLITS.values(), ids=SPLITS)
def test_full_equals_naive(splits: list[list[int]]) -> None:
    text = Text.random(torch.tensor(splits).sum(0).tolist(), 3, 1)
    expected, _ = feed(text, None, backend="naive")
    out, _ = feed(text, None, splits, backend="flex")
    assert_close(out, expected)


def tiles(mask: BlockMask) -> tuple[torch.Tensor, torch.Tensor]:
    """Tiles that are looked at, and those that are taken to be visible throughout."""
    full = BlockMask.from_kv_blocks(mask.full_kv_num_blocks, mask.full_kv_indices).to_dense()
    return mask.to_dense() > 0, full > 0


@pytest.mark.parametrize("starts", [[0, 0], [700, 700], [0, 90], [5000, 333]], ids=str)
@pytest.mark.parametrize("window", [1, 128, 129, 300, 1000], ids="W{}".format)
def test_tiles_cover_what_is_visible(window: int, starts: list[int]) -> None:
    N, S = 700, 140
    layout = Layout.ragged(torch.tensor(starts), torch.tensor([N, N]), CPU)
    H = 1024 if any(starts) else 0
    masks = {
        "window": flex._window_mask(layout, N, H, window),
        "sinks": flex._left_sinks_mask(layout, N, S, window),
        "causal": flex._causal_mask(layout, N, N + max(starts)),
    }
    for name, mask in masks.items():
        some, all_ = tiles(mask)
        exact = create_block_mask(mask.mask_mod, 2, None, *mask.seq_lengths, device="cpu")
        exact_some, exact_all = tiles(exact)
        assert torch.equal(some, exact_some), name
        assert torch.equal(all_, exact_all), name


def test_layers_share_a_mask_and_a_layout_takes_it_along() -> None:
    layout = Layout.dense(0, 1, 200, CPU)
    mask = flex._window_mask(layout, 200, 0, 9)
    assert flex._window_mask(layout, 200, 0, 9) is mask
    assert flex._window_mask(layout, 200, 0, 8) is not mask
    kept = weakref.ref(mask)
    del mask, layout
    gc.collect()
    assert kept() is None
