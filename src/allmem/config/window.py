"""The short-term memory: which keys a query sees, and which chunks go with that."""

from __future__ import annotations

from dataclasses import dataclass

from allmem.config.options import Options, require_positive
from allmem.errors import AllMemError

__all__ = ["WindowConfig", "check_chunk_fits_window"]


@dataclass(frozen=True)
class WindowConfig(Options):
    """The short-term memory: which keys a query sees (paper section 3.2).

    A query at position ``t`` sees keys ``j <= t`` with ``t - j < window`` or ``j < sinks``.

    Raises:
        AllMemError: if ``window < 1``, ``sinks < 0`` or ``sinks >= window``.
    """

    window: int
    """Keys seen behind a token, itself included: W."""
    sinks: int = 0
    """First tokens of a document that stay visible for ever: S."""

    def __post_init__(self) -> None:
        require_positive("WindowConfig", window=self.window)
        if not isinstance(self.sinks, int) or isinstance(self.sinks, bool) or self.sinks < 0:
            raise AllMemError(
                f"WindowConfig: sinks = {self.sinks!r} must be a whole number, 0 or more"
            )
        if self.sinks >= self.window:
            raise AllMemError(
                f"WindowConfig: sinks = {self.sinks} must be smaller than window = {self.window}; "
                f"choose at most {self.window - 1} sinks (a quarter of the window is plenty)"
            )


def check_chunk_fits_window(chunk: int, window: int) -> None:
    """Refuse a window smaller than the chunk: tokens would be in no store.

    A token leaves the window W steps after it was read and enters memory at the end of its chunk,
    at most C steps after.

    Raises:
        AllMemError: if ``window < chunk``.
    """
    if window < chunk:
        raise AllMemError(
            f"window = {window} is smaller than chunk = {chunk}: tokens that left the window and "
            "are not "
            f"yet written would be in no memory; choose chunk <= {window}"
        )
