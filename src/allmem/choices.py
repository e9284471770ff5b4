"""What a user may choose, checked before anything heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from allmem.config import MemoryConfig, WindowConfig, check_chunk_fits_window
from allmem.errors import AllMemError

__all__ = ["Conversion", "Limits"]


@dataclass(frozen=True)
class Conversion:
    """How to convert a model that is not converted yet; ``None`` and empty stand for the defaults.

    ``window``, ``sinks`` and ``chunk`` also say how a converted model shall read, in place of its
    own.

    Raises:
        AllMemError: on values that do not fit together, as far as can be told without the model.
    """

    window: int | None = None
    sinks: int | None = None
    chunk: int | None = None
    mixers: str | None = None
    keep_full: tuple[int, ...] = ()
    memory: dict[str, Any] = field(default_factory=dict)
    """Options of the ``allmem`` memory."""
    mixer_options: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Options of other mixers, by name."""

    def __post_init__(self) -> None:
        chunk = {} if self.chunk is None else {"chunk": self.chunk}
        MemoryConfig.from_dict({**self.memory, **chunk})
        if self.window is not None:
            WindowConfig(self.window, self.sinks or 0)
            if self.chunk is not None:
                check_chunk_fits_window(self.chunk, self.window)

    @property
    def layout(self) -> list[str]:
        """The choices that were made and that are fixed once a model is converted."""
        chosen = {
            "mixers": self.mixers,
            "keep_full": self.keep_full,
            **dict.fromkeys(self.memory, True),
            **dict.fromkeys(self.mixer_options, True),
        }
        return [name for name, value in chosen.items() if value]

    @property
    def reading(self) -> list[str]:
        """The choices that were made and that may differ from one reading to the next."""
        return [name for name in ("window", "sinks", "chunk") if getattr(self, name) is not None]

    def arguments(self) -> dict[str, Any]:
        """For ``allmem.convert``."""
        return {
            "window": self.window,
            "sinks": self.sinks,
            "chunk": self.chunk,
            "mixers": self.mixers or "allmem",
            "keep_full": self.keep_full,
            "memory": self.memory or None,
            "mixer_options": self.mixer_options or None,
        }


@dataclass(frozen=True)
class Limits:
    """Largest differences that a comparison may have, as shares of what is to be matched.

    Raises:
        AllMemError: on a limit that is negative.
    """

    parameters: float = 0.02
    state: float = 0.05

    def __post_init__(self) -> None:
        for name in ("parameters", "state"):
            if getattr(self, name) < 0:
                raise AllMemError(f"limits: {name} = {getattr(self, name)} must be 0 or more")
