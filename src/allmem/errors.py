"""The one exception that users meet, and the wording of its commonest message."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["AllMemError", "first_line", "unknown_name"]


class AllMemError(ValueError):
    """Bad input: the message says, in one line, what was wrong, with what value, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


def first_line(error: BaseException) -> str:
    """What another library's error says, without its explanations; its class if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """``unknown mixer 'alllmem'; did you mean 'allmem'? Known: allmem, full, window``."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"unknown {kind} {name!r}{hint} Known: {', '.join(names)}"
