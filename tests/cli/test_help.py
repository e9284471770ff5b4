"""Help and usage errors: complete, and given without importing anything heavy."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

import allmem
from allmem.cli import main
from scripts.write_cli_docs import PAGE, render

AVAILABLE = [c.name for c in main.COMMANDS if main.is_available(c)]

PROBE = """
import sys
from allmem.cli.main import app
try:
    app({args!r}, prog_name="allmem")
except SystemExit as end:
    code = end.code
heavy = [name for name in ("torch", "transformers", "numpy", "safetensors") if name in sys.modules]
sys.stdout.flush()
sys.exit(f"imported {{heavy}}" if heavy else code)
"""


def probe(*args: str) -> subprocess.CompletedProcess[str]:
    """Run a command line in a process of its own, which fails if anything heavy was imported."""
    return subprocess.run(
        [sys.executable, "-c", PROBE.format(args=list(args))],
        check=False,
        text=True,
        capture_output=True,
    )


def test_help_lists_every_command_without_heavy_imports() -> None:
    done = probe("--help")
    assert done.returncode == 0, done.stderr
    for listed in main.COMMANDS:
        assert listed.name in done.stdout
        assert listed.help[:30] in done.stdout


@pytest.mark.parametrize("name", AVAILABLE)
def test_help_of_a_command_comes_without_heavy_imports(name: str) -> None:
    done = probe(name, "--help")
    assert done.returncode == 0, done.stderr
    assert f"allmem {name}" in done.stdout


@pytest.mark.parametrize(
    "args",
    [["ask", "model"], ["ak"], ["generate", "m", "--no-such"], ["chat", "m", "--window", "x"]],
    ids=["missing", "unknown-command", "unknown-option", "not-a-number"],
)
def test_usage_errors_exit_with_2_without_heavy_imports(args: list[str]) -> None:
    done = probe(*args)
    assert done.returncode == 2, done.stderr
    assert "Error" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "args",
    [
        ["distill", "nosuch"],
        ["distill", "smollm2-cpu", "training.lrr=1"],
        ["arena", "nosuch.yaml"],
        ["cost", "qwen3-0.6b", "--lengths", "x"],
        ["data", "build", "nosuch.yaml", "--output", "nosuch"],
        ["serve", "nosuch", "--timeout", "0"],
        ["serve", "nosuch", "--host", "256.0.0.1"],
    ],
    ids=lambda args: " ".join(args[:2]),
)
def test_wrong_values_are_told_without_heavy_imports(args: list[str]) -> None:
    done = probe(*args)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")


def test_a_misspelt_command_is_told_the_nearest(run: Any) -> None:
    assert "'ask'" in run("aks", code=2).stderr


def test_version_is_the_package_s(run: Any) -> None:
    assert run("--version").stdout == f"allmem {allmem.__version__}\n"


def test_a_missing_command_module_leaves_the_others_alone(
    run: Any, fails: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = [main.Listed(c.name, "allmem.cli.absent", c.help) for c in main.COMMANDS[:1]]
    monkeypatch.setattr(main, "COMMANDS", absent + main.COMMANDS[1:])
    assert repr(absent[0].name) in fails(absent[0].name)
    assert "OUTPUT" in run("convert", "--help").stdout


def test_the_documentation_is_what_the_help_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), "run: python -m scripts.write_cli_docs"
