"""Several samples in one row, each as a document of its own.

Best fit, longest first (as trl's ``bfd``): every sample goes whole into the fullest row that still
has room for it. The order is a function of the lengths alone.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

__all__ = ["pack"]


def pack(lengths: Sequence[int], limit: int, together: bool = True) -> list[list[int]]:
    """Which samples share a row.

    Args:
        lengths: tokens of each sample, none above ``limit``.
        together: else every sample gets a row of its own.

    Returns:
        for each row the numbers of its samples, rows in order of their first sample.
    """
    if not together:
        return [[i] for i in range(len(lengths))]
    rows: list[list[int]] = []
    # (room left, row), sorted: the fullest row that fits is found by bisection.
    open_rows: list[tuple[int, int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[i]
        if length > limit:
            raise ValueError(f"sample {i} has {length} tokens, more than a row of {limit}")
        place = bisect_left(open_rows, (length, -1))
        if place == len(open_rows):
            rows.append([])
            room, row = limit, len(rows) - 1
        else:
            room, row = open_rows.pop(place)
        rows[row].append(i)
        if room > length:
            insort(open_rows, (room - length, row))
    for packed in rows:
        packed.sort()
    return sorted(rows)
