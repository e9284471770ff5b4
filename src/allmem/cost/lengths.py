"""Lengths as people write them: ``4k``, ``128k``, ``1M``."""

from __future__ import annotations

from allmem.errors import AllMemError

__all__ = ["length_name", "parse_lengths"]

UNITS = {"k": 2**10, "m": 2**20}
ELLIPSES = ("...", "…")
LONGEST = 2**40


def parse_lengths(text: str) -> list[int]:
    """The lengths of a list such as ``4k,32k,1M`` in order, each once. Three dots between two of
    them double the first until the second: ``4k,...,32k`` is ``4k,8k,16k,32k``.

    Raises:
        AllMemError: on anything else, naming the item.
    """
    items = [item.strip() for item in text.split(",")]
    found: list[int] = []
    for i, item in enumerate(items):
        if item not in ELLIPSES:
            found.append(_length(item))
            continue
        if not found or i + 1 == len(items) or items[i + 1] in ELLIPSES:
            raise AllMemError(f"lengths: {item} must stand between two lengths, as in 4k,...,1M")
        last = _length(items[i + 1])
        while 2 * found[-1] < last:
            found.append(2 * found[-1])
    return sorted(set(found))


def length_name(length: int) -> str:
    """``4k``, ``1M``; digits where neither unit divides it."""
    for unit, size in (("M", UNITS["m"]), ("k", UNITS["k"])):
        if length >= size and length % size == 0:
            return f"{length // size}{unit}"
    return f"{length:,}"


def _length(item: str) -> int:
    unit = UNITS.get(item[-1:].lower())
    digits = item if unit is None else item[:-1]
    length = int(digits) * (unit or 1) if digits.isascii() and digits.isdigit() else 0
    if not 0 < length <= LONGEST:
        raise AllMemError(
            f"lengths: {item!r} is not a number of tokens; write 4096, 4k or 1M (k is 1,024 tokens)"
        )
    return length
