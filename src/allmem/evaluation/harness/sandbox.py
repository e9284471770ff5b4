"""Running programs that a model wrote, where they can do no harm (``jail.py`` is the inside).

What is promised: a time limit that ends a program and all it started; limits on its memory, its
files and its processes; an empty folder; an empty environment. Where the system allows it, no
network and no change to other files: ``Sandbox.isolation`` tells.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from allmem.errors import AllMemError

__all__ = ["Limits", "Outcome", "Sandbox"]

JAIL = Path(__file__).with_name("jail.py")
GRACE = 10.0
"""Seconds for the jail's own work, over a test's time."""


@dataclass(frozen=True)
class Limits:
    """Of each test."""

    seconds: float = 6.0
    """LiveCodeBench's limit."""
    memory: int = 4 << 30
    """Bytes of address space; LiveCodeBench names 4 GB."""
    file: int = 64 << 20
    """Bytes of a file, standard output included."""
    processes: int = 32


@dataclass(frozen=True)
class Outcome:
    """How a program ended."""

    status: str
    """``ok``, ``error`` or ``timeout``."""
    output: str
    """What it wrote, or what its function returned, as JSON."""
    error: str


class Sandbox:
    """A program, ready to be run on one input after another.

    Args:
        code: in Python.
        function: to be called with an input's lines, each JSON; ``None`` for a program that reads
            its input.
        prelude: our own code that runs before it, such as imports.
    """

    def __init__(
        self,
        code: str,
        function: str | None = None,
        prelude: str = "",
        limits: Limits | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.job = {"code": code, "function": function, "prelude": prelude, **asdict(self.limits)}
        self.isolation: dict[str, bool] = {}
        """Whether it is without ``network``, cannot change other ``files``, and meets the limit on
        ``processes``."""

    def __enter__(self) -> Self:
        if os.name != "posix":
            raise AllMemError("generated code is run on Linux and macOS only")
        self._folder = tempfile.TemporaryDirectory(prefix="allmem-", ignore_cleanup_errors=True)
        folder = Path(self._folder.name)
        # A program may run as another user, who has to reach its own folder in here.
        folder.chmod(0o711)
        self._process: subprocess.Popen[bytes] = subprocess.Popen(
            [sys.executable, "-I", str(JAIL), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={
                "PATH": "/usr/bin:/bin",
                "LANG": "C.UTF-8",
                "HOME": str(folder),
                "TMPDIR": str(folder),
                "OMP_NUM_THREADS": "1",
            },
            start_new_session=True,
        )
        self._pending = b""
        first = self._say(self.job)
        if first is None:
            self.__exit__(None, None, None)
            raise AllMemError(f"the sandbox does not start with {sys.executable}")
        self.isolation = first["isolation"]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                assert pipe is not None
                pipe.close()
        self._folder.cleanup()

    def run(self, text: str) -> Outcome:
        """Run the program on an input."""
        answer = self._say({"input": text})
        if answer is None:
            return Outcome("error", "", "the sandbox was broken")
        return Outcome(**answer)

    def _say(self, message: dict[str, Any]) -> dict[str, Any] | None:
        """The jail's answer; ``None`` if it has died or hangs."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps(message).encode() + b"\n")
            stdin.flush()
        except OSError:
            return None
        while b"\n" not in self._pending:
            ready, _, _ = select.select([stdout], [], [], self.limits.seconds + GRACE)
            read = os.read(stdout.fileno(), 1 << 16) if ready else b""
            if not read:
                return None
            self._pending += read
        line, _, self._pending = self._pending.partition(b"\n")
        return json.loads(line)
