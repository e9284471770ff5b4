"""In which order prompts are answered: those that begin alike side by side, since a batch reads
what they share once, and else those of like length, since a batch then holds little padding.

The order knows nothing of batches, which may change when a run is gone on with.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cmp_to_key
from typing import Any

__all__ = ["alike_together", "common_beginning"]

BLOCK = 64
"""Prompts that are put in order at once: a run that is looked at half-way has seen the first rows
of a task, not the shortest."""


def alike_together(texts: Sequence[object]) -> list[int]:
    """The order of prompts, as their indices.

    Args:
        texts: whose ``str`` are the prompts. No more than two are held at once: those of a block
            may come to hundreds of megabytes.
    """

    def compare(i: int, j: int) -> int:
        one, other = str(texts[i]), str(texts[j])
        return (one > other) - (one < other)

    order: list[int] = []
    for first in range(0, len(texts), BLOCK):
        block = range(first, min(first + BLOCK, len(texts)))
        groups = _alike(texts, sorted(block, key=cmp_to_key(compare)))
        groups.sort(key=lambda group: (len(str(texts[group[0]])), group[0]))
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


def _alike(texts: Sequence[object], indices: Sequence[int]) -> list[list[int]]:
    """Sorted texts in groups: one that shares half of itself with the one before goes with it."""
    groups: list[list[int]] = []
    before = ""
    for i in indices:
        text = str(texts[i])
        if groups and 2 * common_beginning(before, text) >= len(text):
            groups[-1].append(i)
        else:
            groups.append([i])
        before = text
    return groups
