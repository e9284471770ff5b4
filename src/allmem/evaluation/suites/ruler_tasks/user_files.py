"""Files of the user's data folder from which RULER's texts can be made."""

from __future__ import annotations

from pathlib import Path

from allmem.evaluation.user_files import data_folder, first_file

__all__ = ["FOLDERS", "find"]

FOLDERS = ("ruler", "passage_qa", ".")
"""Where in the data folder they may be, first choice first."""


def find(data: Path | None, *names: str) -> Path | None:
    """The first of these files that is there, as it is or packed."""
    if data is None:
        return None
    folder = data_folder(data)
    return first_file(folder / place / name for name in names for place in FOLDERS)
