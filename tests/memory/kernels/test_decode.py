"""``decode_step`` against ``MemoryNetwork.step`` and the products of its factors, in float64."""

from __future__ import annotations

import pytest
import torch

from allmem.errors import AllMemError
from allmem.memory.kernels import decode_step
from allmem.memory.network import FEW, MemoryNetwork
from tests.memory.kernels.problems import (
    BF16,
    Call,
    Shape,
    assert_near,
    call,
    expected,
    guarded_results,
    untouched,
    wide,
)
from tests.memory.kernels.test_step import NETWORKS, SCALED


def check(given: Call, network: MemoryNetwork, dtype: torch.dtype) -> None:
    exact = given.exact()
    norms = {name: exact.weights[name].norm(dim=-1, keepdim=True) for name in exact.targets}
    scales = {name: target / norms[name] for name, target in exact.targets.items()}
    read, factors = expected(network, exact, scales)
    with guarded_results():
        got = decode_step(network, *given.tokens, given.weights, given.targets, given.gradient)
    assert got.dtype == given.q.dtype
    assert_near(got, read, given.q.dtype, "read")
    for name, (left, right) in factors.items():
        assert_near(given.gradient[name], exact.gradient[name] + left.mT @ right, dtype, name)
        assert untouched(given.gradient[name]), name


@pytest.mark.parametrize("scaled", SCALED.values(), ids=SCALED.keys())
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS.keys())
def test_every_option_is_that_of_the_network(
    network: MemoryNetwork, scaled: tuple[str, ...], device: torch.device
) -> None:
    size = Shape(R=2, H=2, N=2, d=24, h=24 if not network.swiglu else 40)
    check(call(size, network, device, wide(device), scaled), network, wide(device))


@pytest.mark.parametrize(
    "shape",
    [
        Shape(R=1, H=1, N=1, d=16, h=16),
        Shape(R=3, H=2, N=1, d=48, h=96),
        Shape(R=1, H=3, N=5, d=96, h=16),
        Shape(R=2, H=1, N=FEW, d=20, h=50),
    ],
    ids=str,
)
@pytest.mark.parametrize("network", ["default", "linear"])
def test_no_size_need_be_a_power_of_two(shape: Shape, network: str, device: torch.device) -> None:
    given = call(shape, NETWORKS[network], device, wide(device), ("gate", "up", "down"))
    check(given, NETWORKS[network], wide(device))


def test_narrow_tokens_are_multiplied_wide(device: torch.device) -> None:
    network = MemoryNetwork()
    size = Shape(R=2, H=2, N=3, d=48, h=32)
    given = call(size, network, device, BF16, ("gate", "up"), state_dtype=torch.float32)
    check(given, network, torch.float32)


def test_a_token_of_rate_zero_changes_nothing(device: torch.device) -> None:
    """As the slots of rows that have no token in this round, which ``rounds.walk`` fills up."""
    network = MemoryNetwork()
    given = call(Shape(R=2, H=2, N=2, d=16, h=24), network, device, wide(device), ("gate", "up"))
    before = {name: g.clone() for name, g in given.gradient.items()}
    zero = [torch.zeros_like(t) for t in given.tokens]
    decode_step(network, *zero, given.weights, given.targets, given.gradient)
    for name, g in given.gradient.items():
        assert torch.equal(g, before[name])


@pytest.mark.parametrize("network", ["default", "linear"])
def test_rows_may_lie_anywhere_in_a_pool(network: str, device: torch.device) -> None:
    """To the bit as side by side, and nothing happens in the slots between them."""
    net, names = NETWORKS[network], ("gate", "up", "down")
    alone = call(Shape(R=3, H=2, N=2, d=24, h=24), net, device, wide(device), names)
    pool = call(Shape(R=7, H=2, N=1, d=24, h=24), net, device, wide(device), names)
    slots, others = torch.tensor([5, 0, 2], device=device), [1, 3, 4, 6]
    for name, w in pool.weights.items():
        w[slots] = alone.weights[name]
        pool.gradient[name][slots] = alone.gradient[name]
    before = {name: g.clone() for name, g in pool.gradient.items()}
    targets = alone.targets
    want = decode_step(net, *alone.tokens, alone.weights, targets, alone.gradient)
    with guarded_results():
        got = decode_step(net, *alone.tokens, pool.weights, targets, pool.gradient, slots)
    assert torch.equal(got, want)
    for name, g in pool.gradient.items():
        assert torch.equal(g[slots], alone.gradient[name]), name
        assert torch.equal(g[others], before[name][others]), name
        assert untouched(g), name


def test_strided_sums_are_refused(device: torch.device) -> None:
    network = MemoryNetwork()
    given = call(Shape(R=1, H=2, N=1, d=16, h=24), network, device, wide(device))
    given.gradient["up"] = given.gradient["up"].mT.contiguous().mT
    with pytest.raises(AllMemError, match=r"gradient\.up.*strides"):
        decode_step(network, *given.tokens, given.weights, {}, given.gradient)
