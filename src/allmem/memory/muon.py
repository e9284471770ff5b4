"""Muon: a step in which every direction of a matrix counts the same (Jordan et al. 2024; as LaCT
applies it to a chunk's update, arXiv:2505.23884).

Of G = U diag(s) V^T it keeps U and V and brings the singular values near one, by five polynomials
of X = G / ||G||:

    p(X) = a X + b (X X^T) X + c (X X^T)^2 X

Directions far below the largest, some thousandth of it, stay below one; a rank that G lacks stays
lacking. LaCT iterates in bf16, this in the dtype of its input.

Letters: o rows and i columns of a matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["NEWTON_SCHULZ", "SMALLEST_NORM", "orthogonalise", "orthogonalise_flops"]

NEWTON_SCHULZ = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
"""a, b, c of each polynomial, as in LaCT's code."""
SMALLEST_NORM = 1e-7
"""Added to ||G||, as in LaCT's code: what is far below it is not written at all."""


def orthogonalise(update: Tensor) -> Tensor:
    """G [..., o, i] with its singular values near one; zero where G is."""
    tall = update.shape[-2] > update.shape[-1]
    x = update.mT if tall else update
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + SMALLEST_NORM)
    for a, b, c in NEWTON_SCHULZ:
        # The products of rows: the smaller of the two squares.
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.mT if tall else x


def orthogonalise_flops(rows: int, columns: int) -> int:
    """Matrix products of one matrix, a multiply-add counting two."""
    small, large = sorted((rows, columns))
    return len(NEWTON_SCHULZ) * 2 * (2 * small**2 * large + small**3)
