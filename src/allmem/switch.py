"""A choice of the whole process that a block of code can force: who computes, and in what."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from allmem.errors import AllMemError, unknown_name

__all__ = ["Switch", "one_of", "settings"]

Value = TypeVar("Value")


def one_of(kind: str, names: Sequence[str]) -> Callable[[str], str]:
    """What a switch among ``names`` reads: a name, which is an error if it is none of them."""

    def read(name: str) -> str:
        if name not in names:
            raise AllMemError(unknown_name(kind, name, names))
        return name

    return read


_switches: list[Switch[Any]] = []


def settings() -> tuple[Any, ...]:
    """What all switches are forced to, in the order in which they were made."""
    return tuple(switch.forced for switch in _switches)


class Switch(Generic[Value]):
    """Not of a thread, since a backward pass may recompute in another one.

    Args:
        read: from a name to the choice; raises on a name that it does not know.
    """

    def __init__(self, read: Callable[[str], Value]) -> None:
        self._read = read
        _switches.append(self)
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
