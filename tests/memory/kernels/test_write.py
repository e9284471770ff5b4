"""The write against its equations in float64, with every option, whole and for some rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from allmem.config import MemoryConfig
from allmem.errors import AllMemError
from allmem.memory.kernels import row_norms, write
from allmem.memory.state import MemoryState
from tests.memory.kernels.problems import assert_near, guarded, guarded_results, untouched, wide

OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "loose-clip": {"clip": 1e3},
    "no-clip": {"clip": None},
    "no-momentum": {"momentum": False},
    "post-update": {"norm": "post_update"},
    "all-matrices": {"norm_matrices": ("gate", "up", "down")},
    "all-matrices-post-update": {
        "norm": "post_update",
        "norm_matrices": ("gate", "up", "down"),
        "clip": None,
    },
    "no-norm": {"norm": "none"},
    "bare": {"norm": "none", "momentum": False, "clip": None},
    "linear": {"network": "linear", "norm_matrices": ("down",)},
}
CHUNK = 7
SIZES = [(16, 16), (48, 20), (20, 96)]


def random_state(
    config: MemoryConfig, rows: int, d: int, h: int, device: torch.device
) -> tuple[MemoryState, dict[str, Tensor]]:
    """A state in the middle of a text, and the norms that its rows are scaled to."""
    sizes = {"gate": (h, d), "up": (h, d), "down": (d, h)}
    if config.network == "linear":
        sizes = {"down": (d, d)}

    def normal(*size: int) -> Tensor:
        return guarded(torch.randn(*size, dtype=torch.float64).to(device, wide(device)))

    state = MemoryState(
        weights={name: normal(rows, 2, *size) for name, size in sizes.items()},
        momentum={name: normal(rows, 2, *size) for name, size in sizes.items()}
        if config.momentum
        else {},
        gradient={name: normal(rows, 2, *size) for name, size in sizes.items()},
        beta=guarded(normal(rows, 2).abs()),
    )
    targets = {
        name: normal(2, size[0], 1).exp()
        for name, size in sizes.items()
        if name in config.norm_matrices
    }
    return state, targets


def written(state: MemoryState, targets: dict[str, Tensor], config: MemoryConfig) -> MemoryState:
    """Steps 4 to 6 as docs/layer.md has them."""
    weights, momentum = {}, {}
    for name, w in state.weights.items():
        g = state.gradient[name]
        if config.clip is not None:
            norm = g.pow(2).sum((-2, -1), keepdim=True).sqrt()
            g = g * torch.minimum(torch.ones_like(norm), config.clip / norm)
        if config.momentum:
            g = (state.beta / CHUNK)[..., None, None] * state.momentum[name] + g
            momentum[name] = g
        normed = name in targets and config.norm != "none"
        if normed and config.norm == "internal":
            w = w * targets[name] / w.norm(dim=-1, keepdim=True)
        w = w - g
        if normed and config.norm == "post_update":
            w = w * targets[name] / w.norm(dim=-1, keepdim=True)
        weights[name] = w
    gradient = {name: torch.zeros_like(g) for name, g in state.gradient.items()}
    return MemoryState(weights, momentum, gradient, torch.zeros_like(state.beta))


@pytest.mark.parametrize("in_place", [True, False], ids=["in-place", "new"])
@pytest.mark.parametrize("masked", [False, True], ids=["all-rows", "some-rows"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_is_what_the_equations_say(
    options: dict[str, Any], masked: bool, in_place: bool, device: torch.device
) -> None:
    config, dtype = MemoryConfig(**options), wide(device)
    state, targets = random_state(config, 3, 20, 96, device)
    before = state.clone()
    exact = {name: target.double() for name, target in targets.items()}
    want = written(state.map(Tensor.double), exact, config).tensors()
    closes = torch.tensor([True, False, True]) if masked else torch.ones(3, dtype=torch.bool)
    with guarded_results():
        rows = closes.to(device) if masked else None
        after = write(state, targets, CHUNK, config, rows, in_place=in_place)
    assert (after is state) == in_place
    for name, got in after.tensors().items():
        assert_near(got[closes], want[name][closes], dtype, name)
        assert torch.equal(got[~closes], before.tensors()[name][~closes]), name
    if not in_place:
        for name, old in state.tensors().items():
            assert torch.equal(old, before.tensors()[name]), name
    assert all(untouched(t) for t in state.tensors().values())


@pytest.mark.parametrize("masked", [False, True], ids=["all-rows", "some-rows"])
@pytest.mark.parametrize("options", ["default", "all-matrices-post-update", "bare", "linear"])
def test_rows_may_lie_anywhere_in_a_pool(options: str, masked: bool, device: torch.device) -> None:
    """To the bit as side by side, and nothing happens in the slots between them."""
    config = MemoryConfig(**OPTIONS[options])
    alone, targets = random_state(config, 3, 20, 96, device)
    pool, _ = random_state(config, 7, 20, 96, device)
    slots, others = torch.tensor([5, 0, 2], device=device), [1, 3, 4, 6]
    for name, kept in pool.tensors().items():
        kept[slots] = alone.tensors()[name]
    before = pool.clone().tensors()
    closes = torch.tensor([True, False, True], device=device) if masked else None
    here = pool.rows_in_place(slots)
    with guarded_results():
        assert write(here, targets, CHUNK, config, closes, in_place=True) is here
    write(alone, targets, CHUNK, config, closes, in_place=True)
    assert torch.equal(here.beta, alone.beta)
    for name, kept in pool.tensors().items():
        assert untouched(kept), name
        assert torch.equal(kept[others], before[name][others]), name
        if name != "beta":
            assert torch.equal(kept[slots], alone.tensors()[name]), name


@pytest.mark.parametrize(("d", "h"), SIZES)
def test_no_size_need_be_a_power_of_two(d: int, h: int, device: torch.device) -> None:
    config = MemoryConfig(norm_matrices=("gate", "up", "down"))
    state, targets = random_state(config, 2, d, h, device)
    exact = {name: target.double() for name, target in targets.items()}
    want = written(state.map(Tensor.double), exact, config).tensors()
    for name, got in write(state, targets, CHUNK, config).tensors().items():
        assert_near(got, want[name], wide(device), name)


def test_rows_that_stay_keep_what_is_no_number(device: torch.device) -> None:
    config = MemoryConfig()
    state, targets = random_state(config, 2, 16, 16, device)
    state.map(lambda t: t[0].fill_(torch.nan))
    closes = torch.tensor([False, True], device=device)
    for in_place in (False, True):
        after = write(state, targets, CHUNK, config, closes, in_place=in_place)
        assert all(bool(t[0].isnan().all()) for t in after.tensors().values())
        assert all(bool(t[1].isfinite().all()) for t in after.tensors().values())


def test_rows_and_gradients_of_zero_stay_finite(device: torch.device) -> None:
    config = MemoryConfig(momentum=False)
    state, targets = random_state(config, 1, 16, 16, device)
    for tensors in (state.weights, state.gradient):
        for t in tensors.values():
            t.zero_()
    after = write(state, targets, CHUNK, config)
    assert all(bool((t == 0).all()) for t in after.tensors().values())


@pytest.mark.parametrize(("d", "h"), SIZES)
def test_norms_of_rows(d: int, h: int, device: torch.device) -> None:
    state, _ = random_state(MemoryConfig(), 2, d, h, device)
    with guarded_results():
        norms = row_norms(state.weights)
    for name, w in state.weights.items():
        assert_near(norms[name], w.double().norm(dim=-1, keepdim=True), wide(device), name)
    of_one = row_norms({name: w[0].mT for name, w in state.weights.items()})
    for name, w in state.weights.items():
        assert_near(of_one[name], w[0].mT.double().norm(dim=-1, keepdim=True), wide(device), name)


def test_what_the_kernel_cannot_write_is_an_error(device: torch.device) -> None:
    config = MemoryConfig()
    state, targets = random_state(config, 1, 16, 24, device)
    with pytest.raises(AllMemError, match="muon"):
        write(state, targets, CHUNK, MemoryConfig(optimizer="muon"))
    with pytest.raises(AllMemError, match="in_place"):
        write(state.rows_in_place(torch.tensor([0], device=device)), targets, CHUNK, config)
    state.momentum["gate"] = state.momentum["gate"].mT.contiguous().mT
    with pytest.raises(AllMemError, match=r"momentum\.gate.*strides"):
        write(state, targets, CHUNK, config)
