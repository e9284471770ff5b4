"""What all memories that keep a matrix for each head share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from allmem.config import WindowConfig
from allmem.layout import Layout
from allmem.memory.projections import AttentionWeights
from allmem.mixers.base import Mixer
from allmem.mixers.matrix import LowRankRate, MatrixState, spread_speeds
from allmem.mixers.registry import memory_kind
from allmem.state import State
from tests.mixers.small import HIDDEN, small_memory

CPU = torch.device("cpu")
NAMES = (
    "deltanet",
    "gated_deltanet",
    "kda",
    "gla",
    "lizard",
    "mamba2",
    "ahn_deltanet",
    "ahn_gated_deltanet",
    "ahn_mamba2",
)


def read(mixer: Mixer, x: Tensor) -> tuple[Tensor, State]:
    state = mixer.init_state(x.shape[0], x.dtype, CPU)
    return mixer(x, state, Layout.dense(0, *x.shape[:2], CPU))


def matrix_of(state: State) -> Tensor:
    memory = getattr(state, "memory", state)
    assert isinstance(memory, MatrixState)
    return memory.matrix


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_it_is_alive_at_the_start(name: str) -> None:
    """It says something, and something that depends on what it read long ago."""
    mixer = small_memory(name, projections="full").double()
    x = torch.randn(1, 30, HIDDEN, dtype=torch.float64)
    y, _ = read(mixer, x)
    x[:, 2:4] += 1
    changed, _ = read(mixer, x)
    assert 0.05 < float(y[:, 20:].std()) < 5
    # Mamba-2 starts with small time steps, and first says little but its skip.
    assert float((changed - y)[:, 20:].std()) > (1e-4 if name == "mamba2" else 1e-2)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_sums_over_a_text_stay_in_fp32(name: str) -> None:
    """Rounding bfloat16 inputs and weights costs under 4 % of the output."""
    mixer = small_memory(name, projections="full")
    x = torch.randn(2, 64, HIDDEN)
    exact, _ = read(mixer, x)
    rounded, state = read(mixer.bfloat16(), x.bfloat16())
    assert rounded.dtype == torch.bfloat16
    assert matrix_of(state).dtype == torch.float32
    assert float((rounded - exact).std() / exact.std()) < 0.04


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_call_without_tokens_changes_nothing(name: str) -> None:
    mixer = small_memory(name, projections="full")
    _, state = read(mixer, torch.randn(2, 12, HIDDEN))
    before = state.clone()
    y, after = mixer(torch.empty(2, 0, HIDDEN), state, Layout.dense(12, 2, 0, CPU))
    assert y.shape == (2, 0, HIDDEN)
    assert all(torch.equal(t, before.tensors()[n]) for n, t in after.tensors().items())


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_new_text_begins_with_the_matrix_and_nothing_else(name: str) -> None:
    mixer = small_memory(name, conv=4, projections="full")
    _, old = read(mixer, torch.randn(2, 12, HIDDEN))
    new = mixer.init_state(2, torch.float32, CPU)
    carried = mixer.carry(old, new)
    assert torch.equal(matrix_of(carried), matrix_of(old))
    for part, tensor in carried.tensors().items():
        assert part.endswith("matrix") or not bool(tensor.any())


def test_speeds_are_spread_evenly_on_a_logarithmic_scale() -> None:
    torch.testing.assert_close(spread_speeds(3), torch.tensor([0.001, 0.01, 0.1]))
    torch.testing.assert_close(spread_speeds(1), torch.tensor([0.001]))
    torch.testing.assert_close(spread_speeds(2, window=50), torch.tensor([1 / 1500, 1 / 50]))


@pytest.mark.parametrize("start", ["window", "tokens"])
@pytest.mark.parametrize("name", ["gated_deltanet", "kda", "gla", "lizard", "mamba2", "mesa"])
@torch.no_grad()
def test_what_leaves_the_window_is_not_forgotten_at_the_start(name: str, start: str) -> None:
    """One token is written, then nothing: how much of the matrix is left after W tokens."""
    window = 512
    kind = memory_kind(name)
    assert kind is not None
    options = kind.options(
        {"decay_start": start, "conv": 0, "heads": 4, "key_dim": 8, "value_dim": 8}
    )
    mixer = kind.make(HIDDEN, options, AttentionWeights(4, 2, 8), WindowConfig(window))
    x = torch.zeros(1, window, HIDDEN)
    x[:, 0] = torch.randn(HIDDEN)
    sizes = []
    state = mixer.init_state(1, torch.float32, CPU)
    for first, now in ((0, x[:, :1]), (1, x[:, 1:])):
        _, state = mixer(now, state, Layout.dense(first, 1, now.shape[1], CPU))
        # Without the column of Lizard's normaliser.
        sizes.append(matrix_of(state)[0, ..., :8].flatten(1).norm(dim=-1))
    left = float((sizes[1] / sizes[0]).min())
    assert (left > 0.3) == (start == "window")


def test_a_rate_of_low_rank_starts_at_its_bias_and_learns() -> None:
    rate = LowRankRate(HIDDEN, 5, rank=2)
    x = torch.randn(3, HIDDEN)
    assert torch.equal(rate(x), torch.zeros(3, 5))
    rate(x).sum().backward()
    assert rate.up.grad is not None
    assert bool(rate.up.grad.any())
