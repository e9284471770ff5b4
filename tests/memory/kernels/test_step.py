"""``step`` against ``MemoryNetwork.step`` in float64: every option, odd sizes, strided inputs, and
not a number written or read beside the tensors."""

from __future__ import annotations

import pytest
import torch

from allmem.memory.kernels import cannot_run, step
from allmem.memory.network import MemoryNetwork
from tests.memory.kernels.problems import (
    BF16,
    Call,
    Shape,
    assert_near,
    call,
    expected,
    framed,
    guarded_results,
    wide,
)

NETWORKS = {
    "default": MemoryNetwork(),
    "no-residual": MemoryNetwork(residual=False),
    "dot": MemoryNetwork(dot_loss=True),
    "dot-no-residual": MemoryNetwork(dot_loss=True, residual=False),
    "linear": MemoryNetwork(swiglu=False),
    "linear-no-residual": MemoryNetwork(swiglu=False, residual=False),
    "linear-dot": MemoryNetwork(swiglu=False, dot_loss=True),
}
SCALED = {
    "unscaled": (),
    "gate-up": ("gate", "up"),
    "all": ("gate", "up", "down"),
    "down": ("down",),
}
SHAPES = [
    Shape(R=1, H=1, N=1, d=16, h=16),
    Shape(R=2, H=3, N=5, d=48, h=16),
    Shape(R=1, H=2, N=17, d=16, h=48),
    Shape(R=3, H=1, N=33, d=48, h=96),
    Shape(R=1, H=2, N=65, d=96, h=40),
]


def check(given: Call, network: MemoryNetwork, dtype: torch.dtype) -> None:
    assert cannot_run(network, given.q, given.weights) is None
    exact = given.exact()
    read, factors = expected(network, exact, exact.scales)
    with guarded_results():
        got, found = step(network, *given.tokens, given.weights, given.scales)
    assert got.dtype == dtype
    assert_near(got, read, dtype, "read")
    assert found.keys() == factors.keys()
    for name, sides in factors.items():
        for ours, right, side in zip(found[name], sides, ("left", "right"), strict=True):
            assert ours.dtype == dtype
            assert_near(ours, right, dtype, f"{name}, {side}")


@pytest.mark.parametrize("scaled", SCALED.values(), ids=SCALED.keys())
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS.keys())
def test_every_option_is_that_of_the_network(
    network: MemoryNetwork, scaled: tuple[str, ...], device: torch.device
) -> None:
    size = Shape(R=2, H=2, N=5, d=24, h=24 if not network.swiglu else 40)
    check(call(size, network, device, wide(device), scaled), network, wide(device))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_size_need_be_a_power_of_two(shape: Shape, device: torch.device) -> None:
    network = MemoryNetwork()
    check(call(shape, network, device, wide(device), ("gate", "up")), network, wide(device))


@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("network", ["default", "linear"])
def test_narrower_numbers_stay_within_their_rounding(
    network: str, dtype: torch.dtype, device: torch.device
) -> None:
    size = Shape(R=2, H=2, N=65, d=48, h=48)
    given = call(size, NETWORKS[network], device, dtype, ("gate", "up", "down"))
    check(given, NETWORKS[network], dtype)


def test_any_strides_will_do(device: torch.device) -> None:
    network, dtype = MemoryNetwork(), wide(device)
    given = call(Shape(R=2, H=2, N=9, d=16, h=16), network, device, dtype)
    # Features that do not lie side by side, rows that share their numbers, tokens backwards in
    # memory, and a plain layout.
    features_first = given.q.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    assert features_first.stride(3) != 1
    given.q = features_first
    given.k = given.k[:1].expand_as(given.k)
    given.v = given.v.transpose(0, 2).contiguous().transpose(0, 2)
    given.eta = given.eta.contiguous()
    check(given, network, dtype)


@pytest.mark.parametrize("network", ["default", "linear"])
def test_rows_and_heads_may_be_one_dimension(network: str, device: torch.device) -> None:
    size = Shape(R=2, H=3, N=5, d=16, h=16)
    given = call(size, NETWORKS[network], device, wide(device), ("gate", "up", "down"))
    flat = {
        part: {name: t.flatten(0, 1) for name, t in getattr(given, part).items()}
        for part in ("weights", "scales")
    }
    read, factors = step(NETWORKS[network], *given.tokens, given.weights, given.scales)
    tokens = [t.flatten(0, 1) for t in given.tokens]
    got, found = step(NETWORKS[network], *tokens, flat["weights"], flat["scales"])
    assert torch.equal(got, read.flatten(0, 1))
    for name, sides in factors.items():
        for ours, right in zip(found[name], sides, strict=True):
            assert torch.equal(ours, right.flatten(0, 1)), name


def test_no_tokens_and_no_rows_are_nothing(device: torch.device) -> None:
    network, dtype = MemoryNetwork(), wide(device)
    given = call(Shape(R=2, H=2, N=3, d=16, h=24), network, device, dtype)
    for rows, tokens in ((2, 0), (0, 3)):
        parts = [t[:rows, :, :tokens] for t in given.tokens]
        weights = {name: w[:rows] for name, w in given.weights.items()}
        read, factors = step(network, *parts, weights)
        assert read.shape == (rows, 2, tokens, 16)
        assert factors["gate"][0].shape == (rows, 2, tokens, 24)


def test_what_a_token_holds_stays_with_it(device: torch.device) -> None:
    network, dtype = MemoryNetwork(), wide(device)
    given = call(Shape(R=1, H=2, N=20, d=16, h=24), network, device, dtype)
    before, _ = step(network, *given.tokens, given.weights)
    poisoned = given.q.transpose(1, 2).clone()
    poisoned[:, 7] = torch.nan
    after, _ = step(network, framed(poisoned), *given.tokens[1:], given.weights)
    assert bool(after[:, :, 7].isnan().all())
    others = [i for i in range(20) if i != 7]
    assert torch.equal(before[:, :, others], after[:, :, others])
