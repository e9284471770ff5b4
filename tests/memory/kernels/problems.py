"""Random calls for the kernels, among numbers that must not be touched, and what is near enough.

Letters: R rows, N tokens, H heads, d head size, h width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from allmem.memory.network import Factors, MemoryNetwork

BF16 = torch.bfloat16
NEAR = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-2}
"""Largest error as a fraction of the largest number. In bf16 that of a GPU, which rounds what it
multiplies; the interpreter multiplies wider, but cuts digits off where a GPU rounds them."""

MARGIN = 4096
"""Numbers around a tensor, more than the largest block reaches beyond it."""


def wide(device: torch.device) -> torch.dtype:
    """The most exact numbers of the kernels there."""
    return torch.float64 if device.type == "cpu" else torch.float32


@dataclass(frozen=True)
class Shape:
    R: int
    H: int
    N: int
    d: int
    h: int

    def __str__(self) -> str:
        return f"R{self.R}-H{self.H}-N{self.N}-d{self.d}-h{self.h}"


def guarded(x: Tensor) -> Tensor:
    """The same numbers, contiguous, between others that are NaN."""
    around = x.new_full((x.numel() + 2 * MARGIN,), torch.nan)
    inside = around[MARGIN : MARGIN + x.numel()].view(x.shape)
    return inside.copy_(x)


def untouched(x: Tensor) -> bool:
    """Whether a tensor of ``guarded`` still lies between NaN."""
    around = x.new_empty(0).set_(x.untyped_storage())
    return bool(around[:MARGIN].isnan().all() and around[MARGIN + x.numel() :].isnan().all())


def framed(x: Tensor) -> Tensor:
    """x [R, N, H, d] as [R, H, N, d], cut out of a larger tensor that is NaN elsewhere, in the
    strides of the inner loop's views."""
    R, N, H, d = x.shape
    around = x.new_full((R, N + 2, H, d + 8), torch.nan)
    inside = around[:, 1 : N + 1, :, :d]
    return inside.copy_(x).transpose(1, 2)


@contextmanager
def guarded_results() -> Iterator[list[Tensor]]:
    """New tensors are full of NaN and lie between NaN inside the block; yields all of them."""
    made: list[Tensor] = []

    def empty(*size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        nan = torch.full(torch.Size(size), torch.nan, dtype=dtype, device=device)
        made.append(guarded(nan))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", empty)
        yield made
    assert all(untouched(x) for x in made)


@dataclass
class Call:
    """What ``MemoryNetwork.step`` is called with, and targets for the rows' norms."""

    q: Tensor
    k: Tensor
    v: Tensor
    eta: Tensor
    weights: dict[str, Tensor]
    scales: dict[str, Tensor]
    targets: dict[str, Tensor]
    gradient: dict[str, Tensor]

    @property
    def tokens(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.q, self.k, self.v, self.eta

    def exact(self) -> Call:
        """The same numbers in float64."""

        def widened(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: t.double().clone() for name, t in tensors.items()}

        tokens = (t.double() for t in self.tokens)
        return Call(
            *tokens, *map(widened, (self.weights, self.scales, self.targets, self.gradient))
        )


def call(
    shape: Shape,
    network: MemoryNetwork,
    device: torch.device,
    dtype: torch.dtype,
    scaled: tuple[str, ...] = (),
    state_dtype: torch.dtype | None = None,
) -> Call:
    """Random numbers of which outputs and gradients are around one."""
    R, H, N, d, h = shape.R, shape.H, shape.N, shape.d, shape.h
    sizes = {"gate": (h, d), "up": (h, d), "down": (d, h)}
    if not network.swiglu:
        sizes = {"down": (d, d)}
    state_dtype = state_dtype or dtype

    def normal(*size: int, of: torch.dtype) -> Tensor:
        return torch.randn(*size, dtype=torch.float64).to(device, of)

    weights = {
        name: normal(R, H, *size, of=torch.float64).mul(size[1] ** -0.5).to(state_dtype)
        for name, size in sizes.items()
    }
    return Call(
        *(framed(normal(R, N, H, d, of=dtype)) for _ in range(3)),
        framed(normal(R, N, H, len(sizes), of=dtype).abs()),
        {name: guarded(w) for name, w in weights.items()},
        {
            name: guarded(normal(R, H, sizes[name][0], 1, of=dtype).exp())
            for name in scaled
            if name in sizes
        },
        {
            name: guarded(normal(H, sizes[name][0], 1, of=state_dtype).exp())
            for name in scaled
            if name in sizes
        },
        {name: guarded(normal(R, H, *size, of=state_dtype)) for name, size in sizes.items()},
    )


def expected(
    network: MemoryNetwork, given: Call, scales: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Factors]]:
    """``MemoryNetwork.step`` of numbers in float64, in which rows and heads are one dimension."""
    tokens = (t.flatten(0, 1) for t in given.tokens)
    weights, scales = (
        {name: t.flatten(0, 1) for name, t in tensors.items()}
        for tensors in (given.weights, scales)
    )
    lead = given.q.shape[:2]
    with torch.no_grad():
        read, factors = network.step(*tokens, weights, scales)
    return read.unflatten(0, lead), {
        name: (left.unflatten(0, lead), right.unflatten(0, lead))
        for name, (left, right) in factors.items()
    }


def assert_near(got: Tensor, want: Tensor, dtype: torch.dtype, what: str = "") -> None:
    """Every number, by the tolerance of ``dtype``."""
    assert got.shape == want.shape, what
    assert bool(got.isfinite().all()), what
    if want.numel():
        error = (got.double() - want.double()).detach().abs().max()
        assert float(error) <= NEAR[dtype] * float(want.detach().abs().max()), what
