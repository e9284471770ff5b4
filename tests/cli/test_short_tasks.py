"""``allmem evaluate`` on programs: stored first, judged when it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.evaluation.short_rows import LCB_ROWS, write_rows


def test_programs_are_not_judged_until_it_is_asked_for(run: Any, base: str, tmp_path: Path) -> None:
    data = write_rows(tmp_path, {"livecodebench_v5.jsonl": LCB_ROWS})
    output = tmp_path / "run"
    asked = ["evaluate", base, "--tasks", "short/livecodebench_v5", "--data", str(data)]
    asked += ["-o", str(output), "-n", "3", "-t", "0", "--device", "cpu"]
    said = run(*asked).stdout
    assert "not scored" in said
    assert "nan" not in said
    (rows,) = output.glob("*/short__livecodebench_v5.jsonl")
    stored = rows.read_bytes()
    assert stored.count(b'"temperature": 0') == 1 + len(LCB_ROWS), "-t 0, in header and rows"
    said = run(*asked, "--run-code").stdout
    assert "not scored" not in said
    assert "0.00" in said
    assert rows.read_bytes() == stored
