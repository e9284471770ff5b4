"""The page that is made of what parts left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import cpu
from benchmarks.measure import machine
from benchmarks.summary import load, merged, page, write


def part(title: str, findings: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    rows = [{"a": {"median": 1.5, "fastest": 1.0, "slowest": 2.0, "runs": 3}}]
    content = {"title": title, "machine": machine(), "rows": rows, "notes": [f"of {title}"]}
    return {**content, "findings": findings, **more}


HELP = {"target": "startup", "case": "--help", "measured": 0.3, "remark": ""}
LOOP = {"target": "loop forward", "case": "tiny", "measured": 0.2, "remark": ""}


def test_a_page_has_the_targets_of_all_parts_and_those_that_did_not_run() -> None:
    parts = {"startup": part("Startup", [HELP]), "loop": part("Loop", [LOOP], took=3.0)}
    content = merged("Title", machine(), parts, ["loop forward", "startup", "million"])
    assert [row["verdict"] for row in content["targets"]] == ["missed", "not measured", "met"]
    text = page(content, tables=False)
    assert "did not run" in text
    assert "[Loop](loop.md)" in text
    assert "of Loop" not in text
    whole = page(content, tables=True)
    assert "## Loop\n\n| a |\n|---|\n| 1.5 (1–2) |\n\n- of Loop" in whole


def test_a_part_that_failed_is_told() -> None:
    content = merged("Title", machine(), {"loop": {"title": "Loop", "failed": "exit code 1"}}, [])
    assert "exit code 1" in page(content, tables=True)


def test_a_quick_part_makes_a_quick_page() -> None:
    content = merged("Title", machine(), {"loop": part("Loop", [LOOP], quick=True)}, [])
    assert "mean nothing" in page(content, tables=False)


def test_a_page_that_was_written_is_read_again(tmp_path: Path) -> None:
    content = merged("Title", machine(), {"loop": part("Loop", [LOOP])}, [])
    write(content, tmp_path, "cpu", tables=False)
    assert load(tmp_path / "cpu.json") == json.loads(json.dumps(content))
    assert load(tmp_path / "nothing.json") is None
    (tmp_path / "bad.json").write_text("{")
    assert load(tmp_path / "bad.json") is None


def test_a_run_that_goes_on_keeps_the_parts_that_were_measured(tmp_path: Path) -> None:
    parts = {"loop": part("Loop", [LOOP]), "million": {"title": "m", "failed": "exit code 1"}}
    write(merged("Title", machine(), parts, []), tmp_path, "cpu", tables=False)
    assert set(cpu.kept(tmp_path)) == {"loop"}
    assert cpu.kept(tmp_path / "nowhere") == {}
