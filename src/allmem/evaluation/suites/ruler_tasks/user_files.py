"""Files of the user's data folder from which RULER's texts can be made."""

from __future__ import annotations

from pathlib import Path

__all__ = ["FOLDERS", "find"]

FOLDERS = ("ruler", "passage_qa", ".")
"""Where in the data folder they may be, first choice first."""


def find(data: Path | None, *names: str) -> Path | None:
    """The first of these files that is there."""
    if data is None:
        return None
    paths = (data / folder / name for name in names for folder in FOLDERS)
    return next((path for path in paths if path.is_file()), None)
