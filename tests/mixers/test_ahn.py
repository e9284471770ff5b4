"""Memories that write what leaves the window (Artificial Hippocampus Networks), against the same
memory fed those tokens alone, and against AHN's own slices of a text."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from allmem.layout import Layout
from allmem.mixers.conformance import randomise
from allmem.mixers.delta import DeltaMixer
from allmem.mixers.evicted import EvictedMixer
from allmem.mixers.mamba2 import Mamba2Mixer
from allmem.mixers.matrix import MatrixMixer, MatrixState
from tests.mixers.others import naive
from tests.mixers.small import HIDDEN, WINDOW, small_memory

CPU = torch.device("cpu")
W, S = WINDOW.window, WINDOW.sinks
AHN = ("ahn_deltanet", "ahn_gated_deltanet", "ahn_mamba2")
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in AHN},
    "convolved": ("gated_deltanet", {"write_scope": "evicted"}),
    "kda": ("kda", {"write_scope": "evicted"}),
    "gla": ("gla", {"write_scope": "evicted"}),
    "mamba2": ("mamba2", {"write_scope": "evicted"}),
    "lizard": ("lizard", {"write_scope": "evicted"}),
}


def evicted(name: str, dtype: torch.dtype, **options: Any) -> tuple[EvictedMixer, MatrixMixer]:
    """A memory behind the window, and what it stands around, which writes what it reads."""
    mixer = small_memory(name, **options).to(dtype)
    randomise(mixer)
    assert isinstance(mixer, EvictedMixer)
    assert isinstance(mixer.memory, MatrixMixer)
    return mixer, mixer.memory


@pytest.mark.parametrize("length", [1, W, W + 1, W + S, W + S + 1, W + S + 3, 29])
@pytest.mark.parametrize(("name", "options"), CASES.values(), ids=CASES.keys())
@torch.no_grad()
def test_it_holds_what_the_memory_holds_that_read_only_what_left(
    name: str, options: dict[str, Any], length: int
) -> None:
    """After token t = length - 1 it has written the tokens S to t - W, in float64 to 1e-12."""
    mixer, memory = evicted(name, torch.float64, **options)
    x = torch.randn(2, length, HIDDEN, dtype=torch.float64)
    _, state = mixer(x, mixer.init_state(2, x.dtype, CPU), Layout.dense(0, 2, length, CPU))
    left = x[:, S : max(length - W, S)]
    alone = memory.init_state(2, x.dtype, CPU)
    if left.shape[1]:
        _, alone = memory(left, alone, Layout.dense(0, 2, left.shape[1], CPU))
    assert isinstance(state.memory, MatrixState)
    assert bool(alone.matrix.any()) == (length > W + S)
    torch.testing.assert_close(state.memory.matrix, alone.matrix, rtol=0, atol=1e-12)
    for part in alone.tails.keys() - {"q"}:
        written, expected = state.memory.tails[part], alone.tails[part]
        torch.testing.assert_close(written, expected, rtol=0, atol=1e-12)


def split(x: Tensor, heads: int) -> Tensor:
    """[R, N, H d] to [R, N, H, d]."""
    return x.unflatten(-1, (heads, -1))


def as_ahn_does(memory: MatrixMixer, x: Tensor) -> Tensor:
    """The queries from W + S on, with the keys, values and rates of the tokens from S on beside
    them, as many of both (``mem_q``, ``mem_k``, ``mem_v`` and ``mem_h_ab`` of its decoder layer);
    nothing before."""
    projections, heads = memory.shell.projections, memory.shell.heads
    leaving, reading = x[:, S:-W], x[:, W + S :]
    q = F.normalize(split(projections.q(reading), heads), dim=-1)
    k = F.normalize(split(projections.k(leaving), heads), dim=-1)
    v = split(projections.v(leaving), heads)
    if isinstance(memory, DeltaMixer):
        rate = memory.rate(leaving).sigmoid()
        decay = torch.zeros_like(rate)
        if memory.forgets == "head":
            decay = -memory.log_speed.exp() * F.softplus(memory.decay(leaving))
        run = naive("gated_delta_rule").naive_recurrent_gated_delta_rule
        read, _ = run(q, k, v, rate, decay)
    else:
        assert isinstance(memory, Mamba2Mixer)
        step = F.softplus(memory.step(leaving))
        run = naive("simple_gla").naive_recurrent_simple_gla
        decay = -memory.log_speed.exp() * step
        read, _ = run(q, k * step[..., None], v, decay, scale=1.0)
    read = F.rms_norm(read, read.shape[-1:], eps=1e-6) * memory.shell.o_norm.weight
    read = read.flatten(2) * F.silu(projections.gate(reading))
    return F.pad(projections.o(read), (0, 0, W + S, 0))


@pytest.mark.parametrize("decoding", [False, True], ids=["prefill", "decode"])
@pytest.mark.parametrize("name", AHN)
@torch.no_grad()
def test_it_says_what_ahn_says(name: str, decoding: bool) -> None:
    """To 1e-5 in fp32, in which the rules of flash-linear-attention compute.

    But for the order of norm and gate in AHN-Mamba2, and the size of gate and output projection.
    """
    mixer, memory = evicted(name, torch.float32)
    x = torch.randn(2, 40, HIDDEN)
    state, read = mixer.init_state(2, x.dtype, CPU), []
    for done in range(40) if decoding else [0]:
        count = 1 if decoding else 40
        y, state = mixer(x[:, done : done + count], state, Layout.dense(done, 2, count, CPU))
        read.append(y)
    expected = as_ahn_does(memory, x)
    assert 1 < float(expected.abs().max()) < 8
    torch.testing.assert_close(torch.cat(read, 1), expected, rtol=0, atol=1e-5)
