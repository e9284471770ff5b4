"""Student's t distribution and Holm's correction, without a library of statistics.

For whole degrees of freedom ν the distribution is a finite sum of powers of cos θ, where
tan θ = t / √ν (Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

__all__ = ["holm", "t_quantile", "t_within"]


def t_within(t: float, freedom: int) -> float:
    """The probability that \\|T\\| is at most ``t`` >= 0, with ``freedom`` >= 1 degrees."""
    angle = math.atan2(t, math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    # Of cos θ, cos³ θ, … for an odd ν, of 1, cos² θ, … for an even one.
    term, total = cosine if odd else 1.0, 0.0
    for power in range(odd, freedom - 1, 2):
        total += term
        term *= cosine**2 * (power + 1) / (power + 2)
    return (angle + sine * total) * 2 / math.pi if odd else sine * total


def t_quantile(level: float, freedom: int) -> float:
    """The t within which \\|T\\| is with probability ``level`` < 1, by bisection."""
    low, high = 0.0, 1.0
    while t_within(high, freedom) < level:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_within(middle, freedom) < level else (low, middle)
    return (low + high) / 2


def holm(probabilities: Mapping[str, float]) -> dict[str, float]:
    """P-values of which the smallest is multiplied by how many there are, the next by one less.

    Those below α are significant, with a chance of at most α that any of them is by accident (Holm,
    A simple sequentially rejective multiple test procedure, 1979).
    """
    order = sorted(probabilities, key=lambda name: probabilities[name])
    corrected: dict[str, float] = {}
    least = 0.0
    for place, name in enumerate(order):
        least = max(least, min(1.0, (len(order) - place) * probabilities[name]))
        corrected[name] = least
    return corrected
