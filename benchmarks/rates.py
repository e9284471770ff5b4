"""What a machine can do at best: the rate of a large matrix product, and of a large copy.

Everything that is reported as a share is a share of these, measured in the same run.
"""

from __future__ import annotations

import torch

from benchmarks.measure import timed

__all__ = ["copy_rate", "matrix_rate"]

MATRIX = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of the product."""
COPIED = {"cpu": 256 << 20, "cuda": 4 << 30}
"""Bytes of the copy."""


def matrix_rate(dtype: torch.dtype, device: torch.device, size: int | None = None) -> float:
    """FLOPs a second of a large product of random numbers; the fastest of ten."""
    size = size or MATRIX[device.type]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / timed(lambda: a @ b, 10, warm_up=3, device=device).fastest


def copy_rate(device: torch.device, size: int | None = None) -> float:
    """Bytes a second of a large copy, counting those read and those written; the fastest of ten."""
    size = size or COPIED[device.type]
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / timed(lambda: target.copy_(source), 10, device=device).fastest
