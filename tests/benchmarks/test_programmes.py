"""Every benchmark is a command that says what it takes; small ones run whole."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

import benchmarks
from benchmarks import cpu

FOLDER = Path(benchmarks.__file__).parent
COMMANDS = sorted(
    path.stem for path in FOLDER.glob("*.py") if 'if __name__ == "__main__"' in path.read_text()
)


def call(name: str, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", [name, *words])
    importlib.import_module(f"benchmarks.{name}").main()


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_it_is(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        call(name, monkeypatch, "--help")
    assert not ended.value.code
    assert "usage:" in capsys.readouterr().out


def test_every_part_of_the_cpu_programme_is_a_command_and_in_the_readme() -> None:
    readme = (FOLDER / "README.md").read_text()
    for part in cpu.PARTS:
        assert part.name in COMMANDS
        assert f"| `{part.name}` | {part.minutes:g} |" in readme


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(SystemExit, match="no part 'nosuch'"):
        cpu.chosen("startup,nosuch")
    assert [part.name for part in cpu.chosen("reading,startup")] == ["startup", "reading"]


@pytest.mark.parametrize("name", ["inner_loop", "step_share", "million"])
def test_a_quick_run_leaves_its_record(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call(name, monkeypatch, "--quick", "--output", str(tmp_path))
    found = json.loads((tmp_path / f"{name}.json").read_text())
    assert found["quick"]
    assert found["rows"]
    assert all(finding["measured"] > 0 for finding in found["findings"])


def test_a_part_that_fails_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "PARTS", (cpu.Module("nosuch", 1),))
    call("cpu", monkeypatch, "--quick", "--output", str(tmp_path), "--threads", "1")
    page = json.loads((tmp_path / "cpu.json").read_text())
    assert page["parts"]["nosuch"]["failed"] == "failed: exit code 1"
    assert {row["verdict"] for row in page["targets"]} == {"not measured"}
