"""What window attention divides its weights by, against the definition and against its weights."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

from allmem.attention import RingState, blocks, use_backend, window_attention, window_mass
from allmem.config import WindowConfig
from allmem.layout import Layout
from tests.attention.calls import CPU, SCALE, Text, assert_close, gradients

SPLITS = [[[29, 7, 0]], [[11, 7, 0], [18, 0, 0]], [[1, 1, 0]] * 7 + [[1, 0, 0]] * 22]


def read(text: Text, window: WindowConfig, splits: list[list[int]]) -> torch.Tensor:
    """The masses of all tokens, row after row: [tokens, Q]."""
    start = torch.zeros_like(text.lengths)
    state = RingState.empty(len(start), 2, 5, 3, window, torch.float64, CPU)
    masses: list[list[torch.Tensor]] = [[] for _ in start]
    for counts in splits:
        layout = Layout.ragged(start, torch.tensor(counts), CPU)
        slots = layout.positions.clamp(max=text.q.shape[2] - 1)

        def cut(x: torch.Tensor, slots=slots, layout=layout) -> torch.Tensor:  # type: ignore[no-untyped-def]
            index = slots[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])
            return torch.where(layout.valid[:, None, :, None], x.gather(2, index), torch.nan)

        q, far, k, v = cut(text.q), cut(text.q_sink(window)), cut(text.k), cut(text.v)
        before = state.clone()
        mass = window_mass(q, far, k, state, layout, window, scale=SCALE)
        assert bool(mass.isfinite().all())
        for name, tensor in state.tensors().items():
            assert torch.equal(tensor, before.tensors()[name])
        _, state = window_attention(q, far, k, v, state, layout, window, scale=SCALE)
        for row, count in enumerate(counts):
            masses[row].append(mass[row, :, :count].T)
        start = start + torch.tensor(counts)
    return torch.cat([torch.cat(parts) for parts in masses])


@pytest.mark.parametrize("window", [(5, 0), (6, 2), (40, 3)], ids="W{0[0]}-S{0[1]}".format)
@pytest.mark.parametrize("splits", SPLITS, ids=["one-call", "two-calls", "token-by-token"])
@pytest.mark.parametrize("block", [4, 128], ids="B{}".format)
def test_any_split_equals_the_definition(
    window: tuple[int, int], splits: list[list[int]], block: int
) -> None:
    text = Text.random([29, 7, 0], grad=True)
    with use_backend("naive"):
        expected = read(text, WindowConfig(*window), SPLITS[0])
    with mock.patch.object(blocks, "BLOCK", block):
        got = read(text, WindowConfig(*window), splits)
        assert_close(got, expected)
        assert_close(gradients(got, text.leaves), gradients(expected, text.leaves))


def test_the_mass_is_what_the_weights_were_divided_by() -> None:
    """Read times mass is the sum of exp(score) v."""
    window, text = WindowConfig(6, 2), Text.random([29])
    layout = Layout.dense(0, 1, 29, CPU)
    state = RingState.empty(1, 2, 5, 3, window, torch.float64, CPU)
    q_sink = text.q_sink(window)
    mass = window_mass(text.q, q_sink, text.k, state, layout, window, scale=SCALE)
    out, _ = window_attention(text.q, q_sink, text.k, text.v, state, layout, window, scale=SCALE)
    t = 20
    seen = [0, 1, *range(t - 5, t + 1)]
    for head in range(4):
        keys, values = text.k[0, head // 2, seen], text.v[0, head // 2, seen]
        queries = torch.stack([q_sink[0, head, t]] * 2 + [text.q[0, head, t]] * 6)
        weights = ((queries * keys).sum(1) * SCALE).exp()
        assert_close(weights @ values, out[0, head, t] * mass[0, head, t].exp())
