"""One job in a process of its own: ``python -m allmem.arena.worker FOLDER``."""

from __future__ import annotations

import sys

from allmem.arena.jobs import read_job
from allmem.arena.running import run_job
from allmem.cli import terminal
from allmem.errors import AllMemError

__all__ = ["main"]

BAD_INPUT = 2


def main(folder: str) -> int:
    """The exit code: 2 for bad input, told in one line as the command line tells it."""
    try:
        run_job(read_job(folder))
    except AllMemError as error:
        terminal.error_console().print(f"error: {error}", markup=False)
        return BAD_INPUT
    return 0


if __name__ == "__main__":
    terminal.quiet(False)
    sys.exit(main(sys.argv[1]))
