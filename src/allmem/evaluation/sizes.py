"""Window, sinks and chunk as one text, apart from everything that needs torch."""

from __future__ import annotations

from dataclasses import dataclass

from allmem.choices import Conversion
from allmem.errors import AllMemError

__all__ = ["Sizes", "parse_sizes"]


@dataclass(frozen=True)
class Sizes:
    """Window, sinks and chunk to read with."""

    window: int
    sinks: int
    chunk: int | None

    def __str__(self) -> str:
        return f"{self.window}/{self.sinks}" + ("" if self.chunk is None else f"/{self.chunk}")


def parse_sizes(text: str) -> Sizes:
    """``512/16/256``: window, sinks and chunk; without a chunk for models that have none.

    Raises:
        AllMemError: on anything else.
    """
    parts = text.split("/")
    if len(parts) not in (2, 3) or not all(part.strip().isdecimal() for part in parts):
        raise AllMemError(f"sizes {text!r}: expected window/sinks/chunk, such as 512/16/256")
    numbers = [int(part) for part in parts]
    sizes = Sizes(numbers[0], numbers[1], numbers[2] if len(numbers) == 3 else None)
    Conversion(sizes.window, sizes.sinks, sizes.chunk)
    return sizes
