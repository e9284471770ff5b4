"""The closed form against the oracle: outputs, final states and outer gradients, over every
option."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from allmem.config import MemoryConfig
from allmem.layout import Layout
from allmem.memory.inner_loop import inner_loop
from allmem.memory.naive import naive_inner_loop
from allmem.memory.state import MemoryState

CPU = torch.device("cpu")


def problem(config: MemoryConfig, rows: int, slots: int, seed: int = 0) -> dict[str, Any]:
    """Random float64 inputs; rates large enough that the memory matters, small enough to be
    stable."""
    g = torch.Generator().manual_seed(seed)
    heads, d, h = config.heads, config.head_dim, config.width
    assert heads is not None
    assert d is not None
    assert h is not None

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    shapes = {"gate": (heads, h, d), "up": (heads, h, d), "down": (heads, d, h)}
    if config.network == "linear":
        shapes = {"down": (heads, d, d)}
    leaves = {
        "q": normal(rows, slots, heads, d),
        "k": normal(rows, slots, heads, d),
        "v": normal(rows, slots, heads, d),
        "eta": normal(rows, slots, heads, len(shapes)).mul(0.3).exp() * 0.05,
        "beta": normal(rows, slots, heads).sigmoid(),
    }
    initial = {name: normal(*shape) * shape[-1] ** -0.5 for name, shape in shapes.items()}
    for leaf in [*leaves.values(), *initial.values()]:
        leaf.requires_grad_()
    return {**leaves, "initial": initial}


def run_split(
    p: dict[str, Any], config: MemoryConfig, lengths: Tensor, cuts: list[list[int]]
) -> tuple[Tensor, MemoryState]:
    """The closed form over ragged rows, every row cut at places of its own."""
    rows = p["q"].shape[0]
    state = MemoryState.begin(p["initial"], rows, config.momentum)
    done = torch.zeros(rows, dtype=torch.int64)
    outputs: list[list[Tensor]] = [[] for _ in range(rows)]
    for call in range(len(cuts[0]) + 1):
        stop = torch.tensor(
            [c[call] if call < len(c) else int(n) for c, n in zip(cuts, lengths, strict=True)]
        )
        stop = torch.maximum(torch.minimum(stop, lengths), done)
        count = stop - done
        width = int(count.max()) + call % 2
        parts = []
        for name in ("q", "k", "v", "eta", "beta"):
            x = p[name]
            rows_now = []
            for r in range(rows):
                piece = x[r, int(done[r]) : int(stop[r])]
                padding = piece.new_full((width - len(piece), *piece.shape[1:]), float("nan"))
                rows_now.append(torch.cat([piece, padding]))
            parts.append(torch.stack(rows_now))
        layout = Layout.ragged(done, count, CPU, slots=width)
        o, state = inner_loop(*parts, state, p["initial"], layout, config)
        for r in range(rows):
            outputs[r].append(o[r, : int(count[r])])
        done = stop
    flat = [torch.cat(o) for o in outputs]
    padded = [torch.nn.functional.pad(o, (0, 0, 0, 0, 0, p["q"].shape[1] - len(o))) for o in flat]
    return torch.stack(padded), state


def relative(a: Tensor, b: Tensor) -> float:
    return float(((a - b).norm() / b.norm().clamp_min(1e-300)).detach())


def leaves_of(p: dict[str, Any]) -> dict[str, Tensor]:
    return {k: v for k, v in p.items() if k != "initial"} | {
        f"initial.{k}": v for k, v in p["initial"].items()
    }


def assert_equal_to_oracle(
    config: MemoryConfig, lengths: Tensor, cuts: list[list[int]], seed: int
) -> None:
    p = problem(config, len(lengths), int(lengths.max()), seed)
    want, weights, momentum = naive_inner_loop(
        p["q"], p["k"], p["v"], p["eta"], p["beta"], p["initial"], config, lengths
    )
    got, state = run_split(p, config, lengths, cuts)
    assert relative(got, want) < 1e-10
    for r in range(len(lengths)):
        for name, w in weights[r].items():
            assert relative(state.weights[name][r], w) < 1e-10, name
            if config.momentum:
                assert relative(state.momentum[name][r], momentum[r][name]) < 1e-10 or not bool(
                    momentum[r][name].any()
                )

    # Outer gradients, through the inner ones, of a loss that reads outputs and final weights.
    g = torch.Generator().manual_seed(seed + 1)
    probe = torch.randn(want.shape, generator=g, dtype=torch.float64)
    probes = {
        n: torch.randn(w.shape, generator=g, dtype=torch.float64) for n, w in weights[0].items()
    }
    loss_want = (want * probe).sum() + sum(
        (w[n] * probes[n]).sum() for w in weights for n in probes
    )
    loss_got = (got * probe).sum() + sum((state.weights[n] * probes[n]).sum() for n in probes)
    leaves = leaves_of(p)
    grads_want = torch.autograd.grad(loss_want, list(leaves.values()), allow_unused=True)
    grads_got = torch.autograd.grad(loss_got, list(leaves.values()), allow_unused=True)
    floor = 1e-12
    if config.optimizer == "muon":
        # Muon takes the size of a rate out again, and with it digits of its gradient.
        floor = 1e-11 * max(float(b.norm()) for b in grads_want if b is not None)
    for name, a, b in zip(leaves, grads_got, grads_want, strict=True):
        b = torch.zeros_like(leaves[name]) if b is None else b
        a = torch.zeros_like(leaves[name]) if a is None else a
        assert float((a - b).norm()) <= 1e-10 * float(b.norm()) + floor, name


BASE = MemoryConfig(chunk=5, heads=2, head_dim=4, width=6, clip=0.5, norm_matrices=("gate", "up"))

OPTIONS = {
    "default": {},
    "all-matrices-normalised": {"norm_matrices": ("gate", "up", "down")},
    "post-update": {"norm": "post_update", "norm_matrices": ("gate", "up", "down")},
    "no-norm": {"norm": "none"},
    "dot": {"loss": "dot"},
    "no-residual": {"residual": False},
    "no-momentum": {"momentum": False},
    "no-clip": {"clip": None},
    "muon": {"optimizer": "muon"},
    "muon-without-momentum": {"optimizer": "muon", "momentum": False, "width": 3},
    "lact": {
        "residual": False,
        "loss": "dot",
        "norm": "post_update",
        "norm_matrices": ("gate", "up", "down"),
        "clip": None,
        "optimizer": "muon",
    },
    "linear": {"network": "linear", "width": 4},
    "linear-dot-post-update": {
        "network": "linear",
        "width": 4,
        "loss": "dot",
        "norm": "post_update",
        "norm_matrices": ("down",),
    },
}


@pytest.mark.parametrize("changes", OPTIONS.values(), ids=OPTIONS.keys())
def test_equals_the_oracle_whole_and_split(changes: dict[str, Any]) -> None:
    config = dataclasses.replace(BASE, **changes)
    lengths = torch.tensor([23, 11, 4])
    assert_equal_to_oracle(config, lengths, [[], [], []], seed=0)
    assert_equal_to_oracle(config, lengths, [[7, 12], [1, 2], [0, 3]], seed=1)


@st.composite
def cases(draw: st.DrawFn) -> tuple[MemoryConfig, Tensor, list[list[int]], int]:
    network = draw(st.sampled_from(["swiglu", "linear"]))
    head_dim = draw(st.integers(1, 5))
    config = MemoryConfig(
        chunk=draw(st.integers(1, 9)),
        heads=draw(st.integers(1, 3)),
        head_dim=head_dim,
        width=head_dim if network == "linear" else draw(st.integers(1, 6)),
        network=network,
        residual=draw(st.booleans()),
        loss=draw(st.sampled_from(["mse", "dot"])),
        norm=draw(st.sampled_from(["internal", "post_update", "none"])),
        norm_matrices=draw(st.sampled_from([("gate", "up"), ("gate", "up", "down"), ("down",)])),
        momentum=draw(st.booleans()),
        clip=draw(st.sampled_from([None, 0.1, 1.0])),
        optimizer=draw(st.sampled_from(["sgd", "muon"])),
    )
    # Many steps of size one from a random start are chaotic: rounding alone would part the two.
    longest = 25 if config.optimizer == "sgd" else min(25, 3 * config.chunk + 2)
    lengths = draw(st.lists(st.integers(0, longest), min_size=1, max_size=3).filter(any))
    cut = st.integers(0, 25)
    parts = draw(st.integers(0, 3))
    cuts = [sorted(draw(st.lists(cut, min_size=parts, max_size=parts))) for _ in lengths]
    return config, torch.tensor(lengths), cuts, draw(st.integers(0, 2**20))


@settings(max_examples=60, deadline=None)
@given(cases())
def test_equals_the_oracle_for_random_shapes_splits_and_options(
    case: tuple[MemoryConfig, Tensor, list[list[int]], int],
) -> None:
    assert_equal_to_oracle(*case)


@pytest.mark.parametrize("lengths", [[4, 3, 1], [12, 12, 12], [13, 5, 0], [5, 5, 5]], ids=str)
@pytest.mark.parametrize("options", [{}, {"network": "linear", "width": 4}], ids=str)
def test_rows_that_nobody_continues_read_the_same(
    options: dict[str, Any], lengths: list[int]
) -> None:
    """Outputs and gradients, also from one F_0 for all rows."""
    config = dataclasses.replace(BASE, **options)
    p = problem(config, 3, 13, seed=7)
    plain = Layout.ragged(torch.zeros(3, dtype=torch.int64), torch.tensor(lengths), CPU, slots=13)
    final = plain.read_with(None, None, final=True)
    parts = [p[name] for name in ("q", "k", "v", "eta", "beta")]
    leaves, found = list(leaves_of(p).values()), []
    for layout, shared in ((plain, False), (final, False), (final, max(lengths) <= config.chunk)):
        state = MemoryState.begin(p["initial"], 3, config.momentum, shared=shared)
        read, _ = inner_loop(*parts, state, p["initial"], layout, config)
        loss = read.square().sum()
        found.append((read, torch.autograd.grad(loss, leaves, allow_unused=True)))
        with torch.no_grad():
            state = MemoryState.begin(p["initial"], 3, config.momentum, shared=shared)
            again, _ = inner_loop(*parts, state, p["initial"], layout, config)
        assert relative(again, read) < 1e-12
    for read, gradients in found[1:]:
        assert relative(read, found[0][0]) < 1e-12
        for name, got, right in zip(leaves_of(p), gradients, found[0][1], strict=True):
            zero = torch.zeros(())
            got, right = (zero if g is None else g for g in (got, right))
            assert float((got - right).norm()) <= 1e-12 * (1 + float(right.norm())), name
