"""What all memories that keep a matrix for each head share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from allmem.layout import Layout
from allmem.mixers.base import Mixer
from allmem.mixers.matrix import LowRankRate, MatrixState, spread_speeds
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
    mixer = small_memory(name).double()
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
    mixer = small_memory(name)
    x = torch.randn(2, 64, HIDDEN)
    exact, _ = read(mixer, x)
    rounded, state = read(mixer.bfloat16(), x.bfloat16())
    assert rounded.dtype == torch.bfloat16
    assert matrix_of(state).dtype == torch.float32
    assert float((rounded - exact).std() / exact.std()) < 0.04


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_call_without_tokens_changes_nothing(name: str) -> None:
    mixer = small_memory(name)
    _, state = read(mixer, torch.randn(2, 12, HIDDEN))
    before = state.clone()
    y, after = mixer(torch.empty(2, 0, HIDDEN), state, Layout.dense(12, 2, 0, CPU))
    assert y.shape == (2, 0, HIDDEN)
    assert all(torch.equal(t, before.tensors()[n]) for n, t in after.tensors().items())


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_new_text_begins_with_the_matrix_and_nothing_else(name: str) -> None:
    mixer = small_memory(name, conv=4)
    _, old = read(mixer, torch.randn(2, 12, HIDDEN))
    new = mixer.init_state(2, torch.float32, CPU)
    carried = mixer.carry(old, new)
    assert torch.equal(matrix_of(carried), matrix_of(old))
    for part, tensor in carried.tensors().items():
        assert part.endswith("matrix") or not bool(tensor.any())


def test_speeds_are_spread_evenly_on_a_logarithmic_scale() -> None:
    torch.testing.assert_close(spread_speeds(3), torch.tensor([0.001, 0.01, 0.1]))
    torch.testing.assert_close(spread_speeds(1), torch.tensor([0.001]))


def test_a_rate_of_low_rank_starts_at_its_bias_and_learns() -> None:
    rate = LowRankRate(HIDDEN, 5, rank=2)
    x = torch.randn(3, HIDDEN)
    assert torch.equal(rate(x), torch.zeros(3, 5))
    rate(x).sum().backward()
    assert rate.up.grad is not None
    assert bool(rate.up.grad.any())
