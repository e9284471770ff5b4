"""The inner loop with the kernels asked for, against the naive oracle: many tokens, tokens one by
one, and both; rows whose chunks close at different times; gradients; and what is said when they
cannot compute."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from allmem.config import MemoryConfig
from allmem.kernels import say_once, use_kernels
from allmem.layout import Layout
from allmem.memory import kernels
from allmem.memory.inner_loop import inner_loop
from allmem.memory.naive import naive_inner_loop
from allmem.memory.state import MemoryState
from tests.memory.kernels.problems import assert_near, wide

BASE: dict[str, Any] = {"chunk": 12, "heads": 2, "head_dim": 16, "width": 24, "clip": 0.5}
ALL = ("gate", "up", "down")
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "all-matrices-normalised": {"norm_matrices": ALL},
    "post-update": {"norm": "post_update", "norm_matrices": ALL},
    "no-norm": {"norm": "none"},
    "dot": {"loss": "dot"},
    "bare": {"residual": False, "momentum": False, "clip": None},
    "linear": {"network": "linear", "width": 16, "norm_matrices": ("down",)},
}
TOKENS = 27
CUTS = {"whole": [], "one-by-one": list(range(1, TOKENS)), "mixed": [1, 3, 20]}


def loop(
    tokens: list[Tensor], initial: dict[str, Tensor], config: MemoryConfig, cuts: list[int]
) -> tuple[Tensor, MemoryState]:
    """The whole loop, call by call."""
    rows = tokens[0].shape[0]
    state = MemoryState.begin(initial, rows, config.momentum)
    reads = []
    with torch.no_grad(), use_kernels("triton"):
        for first, end in zip([0, *cuts], [*cuts, TOKENS], strict=True):
            layout = Layout.dense(first, rows, end - first, tokens[0].device)
            now = (t[:, first:end] for t in tokens)
            read, state = inner_loop(*now, state, initial, layout, config)
            reads.append(read)
    return torch.cat(reads, 1), state


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS.keys())
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_the_kernels_make_the_loop_of_the_oracle(
    options: dict[str, Any], cuts: list[int], device: torch.device
) -> None:
    config = MemoryConfig(**(BASE | options))
    R, H, d, h = 1, 2, config.head_dim, config.width
    sizes = {"gate": (h, d), "up": (h, d), "down": (d, h)}
    sizes = {name: sizes[name] for name in config.matrices}

    def normal(*size: int | None) -> Tensor:
        return torch.randn(*size, dtype=torch.float64).to(device, wide(device))

    q, k, v = (normal(R, TOKENS, H, d) for _ in range(3))
    eta = normal(R, TOKENS, H, len(sizes)).mul(0.3).exp() * 0.05
    beta = normal(R, TOKENS, H).sigmoid()
    initial = {name: normal(H, *size) * (size[1] or 1) ** -0.5 for name, size in sizes.items()}
    want, weights, momentum = naive_inner_loop(
        *(t.double() for t in (q, k, v, eta, beta)),
        {name: w.double() for name, w in initial.items()},
        config,
    )
    got, state = loop([q, k, v, eta, beta], initial, config, cuts)
    dtype = wide(device)
    assert_near(got, want, dtype, "read")
    for name in sizes:
        assert_near(state.weights[name], torch.stack([w[name] for w in weights]), dtype, name)
        if config.momentum:
            assert_near(state.momentum[name], torch.stack([u[name] for u in momentum]), dtype, name)


def watched(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often each kernel was called."""
    calls: dict[str, int] = {}

    def watch(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            calls[name] = calls.get(name, 0) + 1
            return real(*args, **options)

        return call

    for name in ("step", "decode_step", "write"):
        monkeypatch.setattr(kernels, name, watch(name, getattr(kernels, name)))
    return calls


def inputs(
    device: torch.device, rows: int, tokens: int, config: MemoryConfig
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """q, k, v, eta and beta, and F_0."""
    H, d, h = config.heads, config.head_dim, config.width

    def normal(*size: int | None) -> Tensor:
        return torch.randn(*size, dtype=torch.float64).to(device, wide(device))

    sizes = {"gate": (h, d), "up": (h, d), "down": (d, h)}
    given = [normal(rows, tokens, H, d) for _ in range(3)]
    given += [normal(rows, tokens, H, 3).exp() * 0.05, normal(rows, tokens, H).sigmoid()]
    return given, {name: normal(H, *s) * (s[1] or 1) ** -0.5 for name, s in sizes.items()}


@pytest.mark.parametrize("tokens", [3, 14])
def test_rows_that_close_at_different_times_are_as_without_kernels(
    tokens: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = MemoryConfig(**BASE)
    given, initial = inputs(device, 3, tokens, config)
    start, lengths = torch.tensor([10, 5, 0]), torch.tensor([tokens, tokens - 1, 1])
    layout = Layout.ragged(start, lengths, device, slots=tokens)
    found = []
    calls = watched(monkeypatch)
    for name in ("torch", "triton"):
        state = MemoryState.begin(initial, 3, config.momentum)
        for part in (*state.gradient.values(), *state.momentum.values(), state.beta):
            part.copy_(torch.linspace(-1, 1, part.numel()).view_as(part))
        for part in (*state.gradient.values(), state.beta):
            part[2] = 0  # That row's chunk is empty.
        with torch.no_grad(), use_kernels(name):
            read, state = inner_loop(*given, state, initial, layout, config)
        assert ("write" in calls) == (name == "triton")
        found.append((read, state.tensors()))
    assert_near(found[1][0], found[0][0], wide(device), "read")
    for name, tensor in found[1][1].items():
        assert_near(tensor, found[0][1][name], wide(device), name)


def test_training_takes_them_on_the_way_there(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = MemoryConfig(**BASE)
    given, initial = inputs(device, 1, TOKENS, config)
    leaves = [t.requires_grad_() for t in (*given, *initial.values())]
    layout = Layout.dense(0, 1, TOKENS, device)
    calls, found = watched(monkeypatch), []
    for name in ("torch", "triton"):
        with use_kernels(name):
            state = MemoryState.begin(initial, 1, config.momentum)
            read, _ = inner_loop(*given, state, initial, layout, config)
            found.append(torch.autograd.grad(read.square().sum(), leaves))
        assert calls == ({} if name == "torch" else {"step": 3})
    for got, right in zip(found[1], found[0], strict=True):
        assert_near(got, right, wide(device), "gradient")


def test_what_they_cannot_compute_is_said_once_and_computed(device: torch.device) -> None:
    config = MemoryConfig(**(BASE | {"head_dim": 264, "width": 8, "heads": 1}))
    given, initial = inputs(device, 1, 3, config)
    layout = Layout.dense(0, 1, 3, device)
    say_once.cache_clear()
    found = []
    for name in ("torch", "triton", "triton"):
        state = MemoryState.begin(initial, 1, config.momentum)
        with warnings.catch_warnings(record=True) as said, torch.no_grad(), use_kernels(name):
            warnings.simplefilter("always")
            found.append(inner_loop(*given, state, initial, layout, config)[0])
        assert len(said) == (name == "triton" and len(found) == 2)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
