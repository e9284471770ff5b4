"""The paper's own numbers stand beside the tasks that are the paper's, and beside no others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from allmem.evaluation.report import make_report
from tests.evaluation.made_runs import knows, plain, run

GPQA, IFEVAL = "short/gpqa_diamond", "short/ifeval"


@pytest.mark.parametrize(("protocol", "known"), [("official", {IFEVAL}), ("paper", {GPQA, IFEVAL})])
def test_ten_sampled_answers_do_not_stand_beside_a_choice_by_likelihood(
    tmp_path: Path, protocol: Any, known: set[str]
) -> None:
    tasks = [plain(GPQA), plain(IFEVAL)]
    tasks_by_name = run(tmp_path, [knows("model", {GPQA: [0]})], tasks, protocol=protocol)
    make_report([tmp_path], known=tasks_by_name)
    told = (tmp_path / "report" / "report.md").read_text()
    assert ("24.6 / 25.1" in told) == (GPQA in known)
    assert "60.6 / 58.4" in told
    assert "GPQA-Diamond" in told, "it keeps its place and its name"
    numbers = json.loads((tmp_path / "report" / "report.json").read_text())
    assert numbers["paper"][0]["scores"].keys() == known
