"""In which order prompts are answered: those that begin alike side by side, since a batch reads
what they share once, and else those of like length, since a batch then holds little padding.

The order knows nothing of batches, which may change when a run is gone on with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["alike_together", "common_beginning"]

BLOCK = 64
"""Prompts that are put in order at once: a run that is looked at half-way has seen the first rows
of a task, not the shortest."""


def alike_together(texts: Sequence[str]) -> list[int]:
    """The order of prompts, as their indices."""
    order: list[int] = []
    for first in range(0, len(texts), BLOCK):
        block = range(first, min(first + BLOCK, len(texts)))
        groups = _alike(texts, sorted(block, key=lambda i: (texts[i], i)))
        groups.sort(key=lambda group: (len(texts[group[0]]), group[0]))
        order += [i for group in groups for i in group]
    return order


def common_beginning(one: Sequence[Any], other: Sequence[Any]) -> int:
    """With how many characters, or tokens, two texts begin alike."""
    low, high = 0, min(len(one), len(other))
    # By halves: slices of millions of characters compare at the speed of memory.
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _alike(texts: Sequence[str], indices: Sequence[int]) -> list[list[int]]:
    """Sorted texts in groups: one that shares half of itself with the one before goes with it."""
    groups: list[list[int]] = []
    for i in indices:
        shared = common_beginning(texts[groups[-1][-1]], texts[i]) if groups else 0
        if groups and 2 * shared >= len(texts[i]):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups
