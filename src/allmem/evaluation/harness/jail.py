"""The program inside the sandbox: runs code that a model wrote, each test in a process of its own.

It is started by ``sandbox.py`` as a script, imports nothing of allmem, and speaks JSON lines: first
what is to be run, then a line per test, each answered by a line. The process that speaks never runs
the code, and never learns what a test expects.

A test's process has a temporary folder, limits on time, memory, files and processes, and where the
system allows it: no network and no view of other processes (user, network and process namespaces of
Linux), no way to change a file outside its folder (Landlock), another user than root, to whom the
limit on processes does not apply.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["main"]

CLONE_NEWIPC, CLONE_NEWUSER = 0x08000000, 0x10000000
CLONE_NEWPID, CLONE_NEWNET = 0x20000000, 0x40000000
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
"""System calls, the same on every architecture."""
LANDLOCK_WRITES = (1 << 1) | sum(1 << bit for bit in range(4, 13))
"""To write, remove and make files of every kind: linux/landlock.h, version 1."""
LANDLOCK_LATER = {2: 1 << 13, 3: 1 << 14}
"""To rename across folders and to truncate, by the version that brought it."""
LANDLOCK_NET = 0b11
"""To bind and connect TCP, from version 4 on."""
NOBODY = 65_534
LONGEST_OUTPUT = 16 << 20
LONGEST_ERROR = 2000
POLL = 0.002


def main() -> None:
    """Answer tests until there are no more."""
    folder = Path(sys.argv[1])
    job = json.loads(sys.stdin.readline())
    # Imported here once, so that the processes of tests have it already.
    exec(job["prelude"], {})
    isolation = _isolation()
    job["nobody"] = os.geteuid() == 0 and isolation["processes"]
    _say({"isolation": isolation})
    for number, line in enumerate(sys.stdin):
        place = folder / str(number)
        place.mkdir()
        (place / "in").write_text(json.loads(line)["input"], encoding="utf-8")
        answer = _run(job, place)
        shutil.rmtree(place, ignore_errors=True)
        _say(answer)


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _run(job: dict[str, Any], place: Path) -> dict[str, Any]:
    """One test in a process group of its own, which is killed when its time is over."""
    begin = time.monotonic()
    guard = os.fork()
    if guard == 0:
        os._exit(_guarded(job, place))
    status = None
    while status is None and time.monotonic() - begin < job["seconds"]:
        done, code = os.waitpid(guard, os.WNOHANG)
        if done:
            status = code
        else:
            time.sleep(POLL)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(guard, signal.SIGKILL)
    if status is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(guard, signal.SIGKILL)
        os.waitpid(guard, 0)
        return {"status": "timeout", "output": "", "error": ""}
    good = os.waitstatus_to_exitcode(status) == 0
    error = _read(place / "error", LONGEST_ERROR)
    if not good and not error:
        error = f"ended with status {os.waitstatus_to_exitcode(status)}"
    kind = "out" if job["function"] is None else "result"
    output = _read(place / kind, LONGEST_OUTPUT) if good else ""
    return {"status": "ok" if good else "error", "output": output, "error": error}


def _guarded(job: dict[str, Any], place: Path) -> int:
    """Leaves what it should not see, and has the code run in there. When this process is killed,
    so is the first of its namespace, and with that all others."""
    os.setsid()
    if job["nobody"]:
        os.chown(place, NOBODY, NOBODY)
        _become_nobody()
    _leave_namespaces()
    # The first process of the namespace, which no signal from inside it reaches, is not the code's.
    return _in_child(lambda: _in_child(lambda: _shut_in(job, place)))


def _in_child(work: Callable[[], int]) -> int:
    """The status of a process that ends with this one."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(AttributeError):
            _libc().prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os._exit(work())
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code if code >= 0 else 128 - code


def _shut_in(job: dict[str, Any], place: Path) -> int:
    os.chdir(place)
    os.dup2(os.open("in", os.O_RDONLY), 0)
    os.dup2(os.open("out", os.O_WRONLY | os.O_CREAT, 0o600), 1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    os.closerange(3, 1024)
    _limit(job)
    _keep_files(place)
    try:
        _execute(job)
        sys.stdout.flush()
    except SystemExit:
        # The benchmark does not look at how a program ends.
        with contextlib.suppress(Exception):
            sys.stdout.flush()
    except BaseException:
        # Whatever comes out of foreign code, a lack of memory included.
        with contextlib.suppress(BaseException):
            Path("error").write_text(traceback.format_exc()[-LONGEST_ERROR:], encoding="utf-8")
        return 1
    return 0


def _execute(job: dict[str, Any]) -> None:
    code, function = job["code"], job["function"]
    # The streams as a fresh interpreter would have them.
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 (of the whole process)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.argv = ["solution.py"]
    names: dict[str, Any] = {"__name__": "__main__" if function is None else "solution"}
    exec(job["prelude"], names)
    exec(compile(code, "solution.py", "exec"), names)
    if function is None:
        return
    method = getattr(names["Solution"](), function) if "class Solution" in code else names[function]
    result = method(*[json.loads(line) for line in Path("in").read_text("utf-8").split("\n")])
    if isinstance(result, tuple):
        result = list(result)
    text = json.dumps(result, default=lambda value: value.item())
    # What JSON cannot say, such as a tuple in a list, is equal to no expected value.
    same = json.loads(text) == result
    Path("result").write_text(text if same else json.dumps({"unlike": repr(result)}), "utf-8")


def _limit(job: dict[str, Any]) -> None:
    limits = {
        "RLIMIT_CPU": int(job["seconds"]) + 1,
        "RLIMIT_AS": job["memory"],
        "RLIMIT_FSIZE": job["file"],
        "RLIMIT_NPROC": job["processes"],
        "RLIMIT_NOFILE": 64,
        "RLIMIT_CORE": 0,
    }
    for name, value in limits.items():
        # A system may lack one, and refuse to go below what is in use.
        with contextlib.suppress(AttributeError, OSError, ValueError):
            resource.setrlimit(getattr(resource, name), (value, value))


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _become_nobody() -> bool:
    """Stop being root, whose processes no limit counts. Whether Python's own files can be read
    then: an interpreter in root's home is of no use to anyone else."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    return os.access(os.__file__, os.R_OK) and os.access(sys.executable, os.X_OK)


def _leave_namespaces() -> bool:
    """Whether the network and other processes are out of reach from now on."""
    flags = CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWIPC
    return sys.platform == "linux" and _libc().unshare(flags) == 0


def _keep_files(place: Path) -> bool:
    """Whether files outside ``place`` cannot be changed from now on."""
    if sys.platform != "linux":
        return False
    libc = _libc()
    version = libc.syscall(LANDLOCK_CREATE, None, 0, 1)
    if version < 1:
        return False
    writes = LANDLOCK_WRITES | sum(bit for at, bit in LANDLOCK_LATER.items() if version >= at)
    handled = (ctypes.c_uint64 * 2)(writes, LANDLOCK_NET if version >= 4 else 0)
    size = 16 if version >= 4 else 8
    rules = libc.syscall(LANDLOCK_CREATE, ctypes.byref(handled), size, 0)
    if rules < 0:
        return False
    for path, rights in ((str(place), writes), (os.devnull, 1 << 1)):
        opened = os.open(path, getattr(os, "O_PATH", 0))
        # A packed structure: 64 bits of rights, 32 of the file.
        rule = ctypes.create_string_buffer(
            rights.to_bytes(8, sys.byteorder) + opened.to_bytes(4, sys.byteorder)
        )
        libc.syscall(LANDLOCK_ADD, rules, 1, ctypes.byref(rule), 0)
        os.close(opened)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    kept = libc.syscall(LANDLOCK_RESTRICT, rules, 0) == 0
    os.close(rules)
    return kept


def _isolation() -> dict[str, bool]:
    """What this system allows, found out by a process that tries it."""
    found = {}
    for name, attempt in (
        ("network", _leave_namespaces),
        ("files", lambda: _keep_files(Path.cwd())),
        ("processes", _become_nobody),
    ):
        child = os.fork()
        if child == 0:
            worked = False
            with contextlib.suppress(Exception):
                worked = attempt()
            os._exit(0 if worked else 1)
        found[name] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return found


def _read(path: Path, longest: int) -> str:
    try:
        with path.open("rb") as file:
            return file.read(longest).decode("utf-8", "replace")
    except OSError:
        return ""


if __name__ == "__main__":
    main()
