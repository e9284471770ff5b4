"""Lines of data that cannot be read: an error, or left out and counted where the user wants that.

A task calls ``bad_row`` for each; the runner collects what it left out.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

from allmem.errors import AllMemError
from allmem.evaluation.task import Setting

__all__ = ["BadRowWarning", "bad_row", "collected_bad_rows"]


class BadRowWarning(UserWarning):
    """A line of data was left out."""


def bad_row(setting: Setting, why: str) -> None:
    """Refuse a line of data, or leave it out with a warning if ``setting.skip_bad_rows``.

    Args:
        why: with the file, the number of the line and what is wrong with it.

    Raises:
        AllMemError: unless bad rows shall be skipped.
    """
    if not setting.skip_bad_rows:
        raise AllMemError(f"{why}; correct it, or go on without such rows (--skip-bad-rows)")
    warnings.warn(why, BadRowWarning, stacklevel=2)


@contextlib.contextmanager
def collected_bad_rows() -> Iterator[list[str]]:
    """Keeps what ``bad_row`` says in a list, in place of warning about each."""
    found: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always", BadRowWarning)
        usual = warnings.showwarning

        def show(message: Any, category: type[Warning], *rest: Any, **more: Any) -> None:
            if issubclass(category, BadRowWarning):
                found.append(str(message))
            else:
                usual(message, category, *rest, **more)

        warnings.showwarning = show
        yield found
