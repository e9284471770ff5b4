"""The file that makes a folder a run. Imports nothing heavy: a wrong folder is told at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from allmem.errors import AllMemError

__all__ = ["RUN_FILE", "RUN_FORMAT", "RUN_KIND", "read_run_file"]

RUN_FILE = "run.json"
RUN_KIND, RUN_FORMAT = "run", 1


def read_run_file(folder: str | Path) -> dict[str, Any]:
    """What ``evaluate`` wrote about a run.

    Raises:
        AllMemError: if the folder is no run, or one of another version.
    """
    path = Path(folder) / RUN_FILE
    try:
        about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kind, version = about["kind"], about["format"]
    except FileNotFoundError:
        raise AllMemError(
            f"{folder} is no run: there is no {RUN_FILE} in it; make one with `allmem evaluate`"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AllMemError(f"{path} is damaged ({error}); evaluate again") from error
    if (kind, version) != (RUN_KIND, RUN_FORMAT):
        raise AllMemError(
            f"{path} is a {kind!r} of format {version}, this version of allmem reads "
            f"{RUN_KIND!r} of format {RUN_FORMAT}"
        )
    return about
