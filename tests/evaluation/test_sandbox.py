"""Programs in the sandbox: what they may do, and what they may not."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from allmem.evaluation.harness.sandbox import Limits, Outcome, Sandbox

pytestmark = pytest.mark.skipif(os.name != "posix", reason="programs are run on POSIX only")
SHORT = Limits(seconds=1.0)


def run(code: str, text: str = "", function: str | None = None, limits: Limits = SHORT) -> Outcome:
    with Sandbox(code, function, limits=limits) as sandbox:
        return sandbox.run(text)


def isolation(kind: str) -> bool:
    with Sandbox("") as sandbox:
        return sandbox.isolation[kind]


def running(mark: str) -> bool:
    """Whether a process with this word in its command line is there."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark.encode() in path.read_bytes():
                return True
        except OSError:
            continue
    return False


@pytest.mark.parametrize(
    ("code", "text", "output"),
    [
        ("print(2 * int(input()))", "4\n", "8\n"),
        ("import sys\nprint([len(l) for l in sys.stdin.buffer])", "a\nbc\n", "[2, 3]\n"),
        ("if __name__ == '__main__':\n    print(open(0).read())", "x", "x\n"),
        ("import sys\nprint(1)\nsys.exit(3)", "", "1\n"),
        ("open('own', 'w').write('y')\nprint(open('own').read())", "", "y\n"),
        ("from __future__ import annotations\nprint('字')", "", "字\n"),
        ("import threading\nt = threading.Thread(target=print, args=(7,))\nt.start(); t.join()",
         "", "7\n"),
    ],
    ids=["input", "buffer", "main", "exit", "file", "future", "thread"],
)  # fmt: skip
def test_programs_read_and_write(code: str, text: str, output: str) -> None:
    assert run(code, text) == Outcome("ok", output, "")


@pytest.mark.parametrize(
    ("code", "output"),
    [
        ("class Solution:\n    def add(self, a, b):\n        return a + b", "[1, 2]"),
        ("def add(a, b):\n    return tuple(a + b)", "[1, 2]"),
        ("def add(a, b):\n    return [(1, 2)]", '{"unlike": "[(1, 2)]"}'),
    ],
    ids=["method", "tuple", "tuple-inside"],
)
def test_functions_return_json(code: str, output: str) -> None:
    assert run(code, "[1]\n[2]", "add") == Outcome("ok", output, "")


def test_a_prelude_is_there_for_every_test() -> None:
    with Sandbox("seen.append(1)\nprint(len(seen), gcd(4, 6))",
                 prelude="from math import *\nseen = []") as sandbox:  # fmt: skip
        assert [sandbox.run("").output for _ in range(3)] == ["1 2\n"] * 3


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("this is no program", "SyntaxError"),
        ("x = bytearray(10 << 30)", "MemoryError"),
        ("open('big', 'wb').write(bytes(100 << 20))", "File too large"),
        ("def f(): return f()\nf()", "RecursionError"),
        ("import os\nos.kill(os.getpid(), 9)", "ended with status"),
        ("import os\nos.kill(os.getppid(), 9)\nos.killpg(0, 9)", ""),
    ],
    ids=["syntax", "memory", "file", "recursion", "killed", "kills"],
)
def test_what_goes_wrong_is_an_error(code: str, error: str) -> None:
    outcome = run(code)
    assert outcome.status == "error"
    assert error in outcome.error


def test_the_sandbox_goes_on_after_a_test_that_broke() -> None:
    code = "import os\nif input() == 'die':\n    os.killpg(0, 9)\nprint('alive')"
    with Sandbox(code, limits=SHORT) as sandbox:
        assert [sandbox.run(text).status for text in ("die", "live", "die", "live")] == [
            "error", "ok", "error", "ok",
        ]  # fmt: skip


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time\ntime.sleep(60)",
        "import signal, time\nsignal.signal(15, signal.SIG_IGN)\ntime.sleep(60)",
    ],
    ids=["busy", "asleep", "deaf"],
)
def test_time_is_limited(code: str) -> None:
    begin = time.monotonic()
    assert run(code).status == "timeout"
    assert time.monotonic() - begin < 5


def test_what_a_program_started_ends_with_it() -> None:
    mark = f"allmem-orphan-{os.getpid()}"
    code = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)', {mark!r}],"
        " start_new_session=SESSION)\ntime.sleep(60)"
    )
    sessions = ["False", *(["True"] if isolation("network") else [])]
    for session in sessions:
        assert run(code.replace("SESSION", session)).status == "timeout"
        # To be killed takes a process a moment.
        deadline = time.monotonic() + 5
        while running(mark) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not running(mark)


def test_the_environment_and_the_folder_are_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "secret")
    outcome = run("import os\nprint(sorted(os.environ))\nprint(os.listdir('.'))")
    assert "SECRET_TOKEN" not in outcome.output
    # Its standard streams.
    assert outcome.output.splitlines()[1] in ("['in', 'out']", "['out', 'in']")


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run("open('left', 'w').write('x')")
    assert list(tmp_path.iterdir()) == []


def test_there_is_no_network() -> None:
    if not isolation("network"):
        pytest.skip("this system has no user namespaces")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)\nprint(1)"
        assert run(code).status == "error"
        datagram = (
            "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
            f"s.sendto(b'x', ('127.0.0.1', {port}))"
        )
        assert run(datagram).status == "error"


def test_other_files_do_not_change(tmp_path: Path) -> None:
    if not isolation("files"):
        pytest.skip("this system has no Landlock")
    tmp_path.chmod(0o777)
    kept = tmp_path / "kept"
    kept.write_text("kept")
    kept.chmod(0o666)
    for code in (f"open({str(kept)!r}, 'w')", f"import os\nos.remove({str(kept)!r})",
                 f"open({str(tmp_path / 'new')!r}, 'w')",
                 f"import os\nos.truncate({str(kept)!r}, 0)",
                 f"import os\nos.rename({str(kept)!r}, 'stolen')"):  # fmt: skip
        assert "Error" in run(code).error, code
    assert kept.read_text() == "kept"
    assert list(tmp_path.iterdir()) == [kept]


def test_processes_are_limited() -> None:
    if not isolation("processes"):
        pytest.skip("this system's root cannot run programs as anyone else")
    code = "import os, time\nfor n in range(200):\n    if os.fork() == 0:\n        time.sleep(60)\n"
    outcome = run(code)
    assert outcome.status == "error"
    assert "BlockingIOError" in outcome.error
