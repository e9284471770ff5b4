"""The GPU programme, on a CPU with tiny sizes: what it goes through, and how it survives."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu, gpu_checks
from benchmarks.gpu_checks import CheckSizes, attention_checks
from benchmarks.gpu_parts import PARTS, Context, GpuPart, Result


def start(folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> dict[str, Any]:
    """Run the programme; the page as JSON."""
    common = ["gpu", "--device", "cpu", "--quick", "--output", str(folder)]
    monkeypatch.setattr(sys, "argv", [*common, *words])
    gpu.main()
    found: dict[str, Any] = json.loads((folder / "gpu.json").read_text())
    return found


def test_parts_fill_the_time_that_they_share() -> None:
    assert sum(part.seconds for part in PARTS) <= gpu.SECONDS < 9 * 60
    assert gpu.allowed(PARTS[0], PARTS[1:], 1000) > PARTS[0].seconds
    assert gpu.allowed(PARTS[0], PARTS[1:], 5) == 5
    assert gpu.allowed(PARTS[-1], [], 100) == 100


def test_some_parts_run_and_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = start(tmp_path, monkeypatch, "--only", "rates,batch")
    assert list(found["parts"]) == ["rates", "batch"]
    assert not any("failed" in part for part in found["parts"].values())
    batch = found["parts"]["batch"]["rows"][0]
    assert batch["AllMem: batch that ran"] > 0
    found = start(tmp_path, monkeypatch, "--only", "loop")
    assert list(found["parts"]) == ["rates", "loop", "batch"]
    assert "mean nothing" in (tmp_path / "gpu.md").read_text()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_of_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = start(tmp_path, monkeypatch)
    assert list(found["parts"]) == [part.name for part in PARTS]
    assert [name for name, part in found["parts"].items() if "failed" in part] == []
    assert {row["verdict"] for row in found["targets"]} <= {"met", "missed", "not measured"}


def fake(name: str, rows: list[Any]) -> GpuPart:
    def make(context: Context) -> Iterator[Result]:
        for row in rows:
            if isinstance(row, Exception):
                raise row
            yield row, []

    return GpuPart(name, name, 20, make)


def test_a_part_that_fails_keeps_its_rows_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [fake("one", [{"a": 1}, ValueError("no\nmore")]), fake("two", [{"b": 2}])]
    monkeypatch.setattr(gpu, "PARTS", parts)
    found = start(tmp_path, monkeypatch)["parts"]
    assert found["one"]["rows"] == [{"a": 1}]
    assert found["one"]["failed"] == "failed: ValueError: no"
    assert found["two"]["rows"] == [{"b": 2}]


def test_a_part_ends_when_its_time_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "PARTS", [fake("one", [{"a": 1}, {"a": 2}]), fake("two", [{"b": 2}])])
    monkeypatch.setattr(gpu, "allowed", lambda *_: -1.0)
    found = start(tmp_path, monkeypatch)["parts"]
    assert [part["rows"] for part in found.values()] == [[{"a": 1}], [{"b": 2}]]
    assert "its time was up" in found["one"]["notes"][-1]
    found = start(tmp_path, monkeypatch, "--seconds", "1")["parts"]
    assert all("no time was left" in part["failed"] for part in found.values())


def test_a_device_that_broke_is_left_by_starting_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = RuntimeError("CUDA error: an illegal memory access was encountered")
    monkeypatch.setattr(gpu, "PARTS", [fake("one", [{"a": 1}, broken]), fake("two", [{"b": 2}])])
    started: list[list[str]] = []

    def again(_: str, words: list[str]) -> None:
        started.append(words)
        raise SystemExit

    monkeypatch.setattr("os.execv", again)
    with pytest.raises(SystemExit):
        start(tmp_path, monkeypatch)
    assert started[0][1:3] == ["-m", "benchmarks.gpu"]
    assert "--resume" in started[0]
    # What the second start does.
    found = start(tmp_path, monkeypatch, "--resume")["parts"]
    assert "illegal memory access" in found["one"]["failed"]
    assert found["one"]["rows"] == [{"a": 1}]
    assert found["two"]["rows"] == [{"b": 2}]


def test_checks_find_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = CheckSizes(2, 16, 32, 64, 8, 150, 4)
    cpu = torch.device("cpu")
    assert {row["within"] for row in attention_checks(torch.float32, cpu, sizes)} == {"yes"}
    right = gpu_checks.window_attention

    def wrong(*arguments: Any, **named: Any) -> Any:
        out, state = right(*arguments, **named)
        return out * 1.01, state

    monkeypatch.setattr(gpu_checks, "window_attention", wrong)
    assert {row["within"] for row in attention_checks(torch.float32, cpu, sizes)} == {"NO"}
    row = gpu_checks._row("x", torch.float32, float("nan"), 1.0)
    assert row["within"] == "NO"


def test_a_check_beyond_its_limit_is_told_on_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"what": "reads", "within": "yes"}, {"what": "writes", "within": "NO"}]
    monkeypatch.setattr(gpu, "PARTS", [fake("checks", rows)])
    found = start(tmp_path, monkeypatch)["parts"]["checks"]
    assert found["failed"] == "beyond its limit: writes"
