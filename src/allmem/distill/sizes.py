"""The window, sinks and chunk of a step: the model's own, or drawn.

Plain Python on purpose, as ``allmem.config``: nothing here imports torch.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from allmem.config import WindowConfig
from allmem.errors import AllMemError
from allmem.schema import check_positive

__all__ = ["RandomSizes", "Sizes"]

SMALLEST_SINKS = 4
"""Fewest sinks that are drawn: with none, perplexity nearly doubles and hides all else."""


@dataclass(frozen=True)
class Sizes:
    """The window, sinks and chunk that one step reads with."""

    window: int
    sinks: int
    chunk: int | None
    """``None`` where no layer has chunks."""

    @property
    def config(self) -> WindowConfig:
        return WindowConfig(self.window, self.sinks)


@dataclass(frozen=True)
class RandomSizes:
    """Draw window, sinks and chunk anew at every step, so that one checkpoint serves every setting
    (paper section 3.3.2). Powers of two by default.

    Raises:
        AllMemError: on sizes of which no valid combination is left.
    """

    windows: tuple[int, ...]
    """To draw from; a sixteenth to a half of the length suits (design of the project, section
    4)."""
    sinks: tuple[int, ...] | None = None
    """Those up to a quarter of the drawn window; ``None`` for the powers of two from 4 on."""
    chunks: tuple[int, ...] | None = None
    """Those up to the drawn window; ``None`` for the powers of two from an eighth of it on."""

    def __post_init__(self) -> None:
        if not self.windows:
            raise AllMemError("windows is empty; name at least one, such as [64, 128, 256]")
        for window in self.windows:
            check_positive(window=window)
            for name, found in (("sinks", self._sinks(window)), ("chunks", self._chunks(window))):
                if not found:
                    limit = "a quarter of the window" if name == "sinks" else "the window"
                    raise AllMemError(
                        f"{name} = {getattr(self, name)} holds nothing up to {limit} {window}"
                    )

    def draw(self, step: int, seed: int, chunked: bool = True) -> Sizes:
        """The sizes of a step: a function of ``step`` and ``seed`` alone."""
        source = random.Random(f"{seed} sizes {step}")
        window = source.choice(self.windows)
        sinks = source.choice(self._sinks(window))
        chunk = source.choice(self._chunks(window))
        return Sizes(window, sinks, chunk if chunked else None)

    def _sinks(self, window: int) -> list[int]:
        if self.sinks is None:
            return _powers_of_two(SMALLEST_SINKS, window // 4) or [min(SMALLEST_SINKS, window // 4)]
        return [s for s in self.sinks if 0 <= s <= window // 4]

    def _chunks(self, window: int) -> list[int]:
        if self.chunks is None:
            return _powers_of_two(max(window // 8, 1), window)
        return [c for c in self.chunks if 0 < c <= window]


def _powers_of_two(least: int, most: int) -> list[int]:
    return [1 << i for i in range(most.bit_length()) if least <= 1 << i <= most]
