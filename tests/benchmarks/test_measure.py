"""Records of measurements: what is written, where, and how it reads."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest

from benchmarks import measure
from benchmarks.measure import Timing, machine, markdown, record, rotating, timed, timing_of
from benchmarks.targets import Finding


def test_a_timing_has_the_median_and_the_spread() -> None:
    assert timing_of([3.0, 1.0, 2.0]) == Timing(2.0, 1.0, 3.0, 3)
    assert timing_of([3.0, 1.0, 2.0]).times(10) == Timing(20.0, 10.0, 30.0, 3)


def test_warm_ups_are_not_timed() -> None:
    calls: list[int] = []
    assert timed(lambda: calls.append(0), runs=2, warm_up=3).runs == 2
    assert len(calls) == 5


def test_inputs_are_rotated_until_no_cache_holds_them() -> None:
    made: list[int] = []

    def make() -> int:
        made.append(len(made))
        return made[-1]

    inputs = rotating(make, measure.CACHE["cpu"] // 5 + 1, "cpu")
    assert [next(inputs) for _ in range(7)] == [0, 1, 2, 3, 4, 0, 1]
    assert len(made) == 5


def test_a_table_has_every_column_that_some_row_has() -> None:
    rows = [{"a": 1, "b": Timing(1.0, 0.5, 2.0, 3)}, {"a": 2.5, "c": "x"}]
    assert markdown(rows).splitlines() == [
        "| a | b | c |",
        "|---|---|---|",
        "| 1 | 1 (0.5–2) |  |",
        "| 2.5 |  | x |",
    ]


def test_a_record_holds_rows_machine_and_findings(tmp_path: Path) -> None:
    options = argparse.Namespace(quick=False, output=tmp_path / "made")
    finding = Finding("startup", "--help", 0.2)
    record("name", "Title", [{"s": Timing(1, 1, 1, 1)}], ["a note"], [finding], options)
    found = json.loads((tmp_path / "made" / "name.json").read_text())
    assert found["rows"] == [{"s": {"median": 1, "fastest": 1, "slowest": 1, "runs": 1}}]
    assert found["findings"][0]["measured"] == 0.2
    assert {"date", "command", "threads", "torch"} <= found["machine"].keys()
    text = (tmp_path / "made" / "name.md").read_text()
    assert "| ≤ 0.5 s | 0.2 s | met |" in text
    assert text.endswith("- a note\n")


def test_a_quick_run_writes_nothing_unless_told_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    options = argparse.Namespace(quick=True, output=None)
    record("name", "Title", [{"a": 1}], [], (), options)
    assert list(tmp_path.iterdir()) == []
    assert measure.QUICK in capsys.readouterr().out
    record("name", "Title", [{"a": 1}], [], (), argparse.Namespace(quick=False, output=None))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_setting_of_the_environment_is_part_of_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ALLMEM_KERNELS", "torch")
    assert machine()["command"].startswith("ALLMEM_KERNELS=torch python -m ")
    monkeypatch.delenv("ALLMEM_KERNELS")
    assert machine()["command"].startswith("python -m ")


def test_the_command_is_told_without_the_folder_of_its_results(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["x.py", "--runs", "3", "--output", "/somewhere", "--quick", "--output=/there"]
    monkeypatch.setattr(sys, "argv", words)
    command = machine()["command"]
    assert command.endswith(" --runs 3 --quick")
    assert "somewhere" not in command
