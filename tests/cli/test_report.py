"""``allmem report`` on a run of a real task, whose answers are made up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from allmem.evaluation.report import drawing
from allmem.evaluation.rows import ROWS, rows_path, setting_header, write_run
from allmem.evaluation.task import Setting
from allmem.journal import begin, continued

TASK = "longbench/hotpotqa"
ANSWERS = {"teacher": ["Paris", "Rome"], "student": ["Paris", "no idea"]}
GOLD = ["Paris", "Rome"]


def write(folder: Path, limit: int = 2) -> Path:
    """A run as `allmem evaluate` leaves it."""
    models = [{"label": label, "identity": {"weights": label}} for label in ANSWERS]
    setting = setting_header(Setting(limit=limit))
    folder.mkdir()
    told = {"date": "2026-01-01", "command": "allmem evaluate …", "versions": {"torch": "2"}}
    write_run(folder, models, [TASK], {}, None, {}, **told)
    for model in models:
        path = rows_path(folder, model["label"], TASK)
        path.parent.mkdir()
        header = {
            **ROWS.header,
            "task": TASK,
            "model": model["identity"],
            "setting": setting,
            "examples": 2,
            "metric": "qa_f1",
            "scale": 100.0,
            "higher_is_better": True,
        }
        begin(path, header)
        with continued(path, path.stat().st_size) as pen:
            pairs = zip(ANSWERS[model["label"]], GOLD, strict=True)
            pen.write(
                {"id": str(i), "cell": {}, "reference": {"answers": [gold]}, "prediction": said}
                for i, (said, gold) in enumerate(pairs)
            )
    return folder


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(drawing, "DPI", 30)
    return write(tmp_path / "run")


def test_a_run_becomes_files_in_its_folder(run: Callable[..., Any], made: Path) -> None:
    done = run("report", str(made))
    lines = done.stdout.splitlines()
    assert lines[0] == "teacher; student: 1 task"
    assert [Path(line).name for line in lines[1:]] == ["report.html", "report.md", "report.json"]
    assert all(Path(line).is_file() for line in lines[1:])
    told = (made / "report" / "report.md").read_text(encoding="utf-8")
    assert "100.0 (n=2)" in told
    # The teacher knows both, the student one: half of it, by the task's own rule.
    assert "-50.0" in told


def test_another_folder_can_be_named(run: Callable[..., Any], made: Path, tmp_path: Path) -> None:
    run("report", str(made), "-o", str(tmp_path / "there" / "it"))
    assert (tmp_path / "there" / "it" / "report.html").is_file()
    assert not (made / "report").exists()


def test_what_cannot_be_compared_is_told_on_stderr(
    run: Callable[..., Any], made: Path, tmp_path: Path
) -> None:
    done = run("report", str(made), str(write(tmp_path / "other", limit=3)))
    assert "note: Not comparable: the columns differ in limit" in done.stderr


def test_a_folder_that_is_no_run_is_an_error(fails: Callable[..., str], tmp_path: Path) -> None:
    assert "is no run" in fails("report", str(tmp_path))


def test_a_place_where_nothing_can_be_written_is_an_error(
    fails: Callable[..., str], made: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    assert "--output" in fails("report", str(made), "-o", str(tmp_path / "file"))
