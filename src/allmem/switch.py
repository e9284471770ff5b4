"""A choice of the whole process that a block of code can force: who computes, and in what."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

__all__ = ["Switch"]

Value = TypeVar("Value")


class Switch(Generic[Value]):
    """Not of a thread, since a backward pass may recompute in another one.

    Args:
        read: from a name to the choice; raises on a name that it does not know.
    """

    def __init__(self, read: Callable[[str], Value]) -> None:
        self._read = read
        self.forced: Value | None = None
        """``None`` outside all blocks."""

    @contextmanager
    def use(self, name: str) -> Iterator[None]:
        """Force a choice inside the block.

        Raises:
            AllMemError: if there is no such choice.
        """
        before, self.forced = self.forced, self._read(name)
        try:
            yield
        finally:
            self.forced = before
