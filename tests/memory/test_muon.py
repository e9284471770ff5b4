"""Muon's step against the singular values that it promises."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from allmem.memory.muon import orthogonalise, orthogonalise_flops

SHAPES = [(6, 6), (4, 9), (9, 4), (1, 5), (1, 1)]
COEFFICIENTS = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)


def matrices(shape: tuple[int, int], dtype: torch.dtype = torch.float64) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, *shape, generator=g, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_a_polynomial_of_the_singular_values(shape: tuple[int, int]) -> None:
    update = matrices(shape)
    u, s, v = torch.linalg.svd(update, full_matrices=False)
    s = s / s.square().sum(-1, keepdim=True).sqrt()
    for a, b, c in COEFFICIENTS:
        s = a * s + b * s**3 + c * s**5
    torch.testing.assert_close(orthogonalise(update), u * s[..., None, :] @ v, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_singular_values_come_near_one(dtype: torch.dtype) -> None:
    """From a thousandth of the largest on."""
    u, _, v = torch.linalg.svd(matrices((8, 12), dtype), full_matrices=False)
    given = torch.logspace(-2.5, 0, 8, dtype=dtype)
    found = torch.linalg.svdvals(orthogonalise(u * given @ v))
    assert float(found.min()) > 0.7
    assert float(found.max()) < 1.3


def test_nothing_stays_nothing_and_can_be_differentiated() -> None:
    update = torch.zeros(2, 4, 5, dtype=torch.float64, requires_grad=True)
    step = orthogonalise(update)
    assert not bool(step.any())
    (gradient,) = torch.autograd.grad(step.sum(), update)
    assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_operations_are_those_that_torch_counts(shape: tuple[int, int]) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        orthogonalise(matrices(shape))
    assert counter.get_total_flops() == 6 * orthogonalise_flops(*shape)
