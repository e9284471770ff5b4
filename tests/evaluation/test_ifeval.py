"""IFEval: the official scores of recorded answers, instruction by instruction."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import random
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from allmem.errors import AllMemError
from allmem.evaluation.harness import sentences
from allmem.evaluation.scores import mean_score, score_rows
from allmem.evaluation.suites.short import TASKS

pytest.importorskip("lm_eval")
FIXTURE = Path(__file__).parents[1] / "fixtures" / "ifeval" / "official.jsonl.xz"
DATA = os.environ.get("ALLMEM_DATA")
KEPT = ("key", "prompt", "instruction_id_list", "kwargs")
KINDS = 25

Recorded = dict[str, Any]


def recorded() -> list[Recorded]:
    with lzma.open(FIXTURE, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def as_row(one: Recorded, number: int = 0) -> Recorded:
    """As a run stores it."""
    document = {key: one[key] for key in KEPT}
    reference = {"task": "ifeval", "document": document}
    return {"id": str(number), "cell": {}, "reference": reference, "prediction": one["response"]}


def check(rows: Iterable[Recorded]) -> int:
    task = TASKS["short/ifeval"]()
    count = 0
    for one in rows:
        whole, *single = task.parts(as_row(one))
        for kind in ("strict", "loose"):
            verdicts = [part.scores[f"inst_level_{kind}_acc"] for part in single]
            assert verdicts == list(map(float, one[kind])), (one["key"], kind)
            assert whole.scores[f"prompt_level_{kind}_acc"] == float(all(one[kind]))
        count += 1
    return count


def test_recorded_answers_score_as_officially() -> None:
    rows = recorded()
    assert len({kind for one in rows for kind in one["instruction_id_list"]}) == KINDS
    assert check(rows) == 249


@pytest.mark.skipif(DATA is None, reason="ALLMEM_DATA names no folder of data")
@pytest.mark.slow
def test_all_recorded_answers_score_as_officially() -> None:
    folder = Path(DATA or "")
    with gzip.open(next(folder.rglob("ifeval_input_data.jsonl.gz")), "rt") as lines:
        prompts = {row["key"]: row for row in map(json.loads, lines)}
    with gzip.open(next(folder.rglob("ifeval_official.jsonl.gz")), "rt") as lines:
        rows = [prompts[row["key"]] | row for row in map(json.loads, lines)]
    assert check(rows) == 1623


def test_means_are_over_prompts_and_over_instructions() -> None:
    rows = recorded()
    scored = score_rows(
        TASKS["short/ifeval"](), [as_row(one, number) for number, one in enumerate(rows)]
    )
    every = [verdict for one in rows for verdict in one["strict"]]
    by_prompt = [all(one["strict"]) for one in rows]
    found = mean_score(scored, "inst_level_strict_acc").mean
    assert found == pytest.approx(sum(every) / len(every), abs=1e-12)
    found = mean_score(scored, "prompt_level_strict_acc").mean
    assert found == pytest.approx(sum(by_prompt) / len(by_prompt), abs=1e-12)


def test_a_score_does_not_depend_on_what_was_drawn_before() -> None:
    """Two prompts have the checker draw a letter."""
    task = TASKS["short/ifeval"]()
    drawn = [one for one in recorded() if one["key"] in (1122, 1129)]
    assert len(drawn) == 6
    for one in drawn:
        random.seed(1)
        first = task.parts(as_row(one))
        random.seed(2)
        assert task.parts(as_row(one)) == first


def test_the_rules_for_sentences_are_found_or_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    sentences.provide_sentences(download=False)
    monkeypatch.setattr(sentences, "_there", lambda: False)
    with pytest.raises(AllMemError, match=r"punkt_tab.*pip install --no-deps llama-index-core"):
        sentences.provide_sentences(download=False)


def test_nothing_is_printed_or_fetched() -> None:
    """In a fresh interpreter, since lm-eval fetches where it is imported first."""
    code = (
        "import socket\n"
        "def refuse(*a, **k): raise AssertionError('the network was touched')\n"
        "socket.socket.connect = refuse\n"
        "from allmem.evaluation.suites.short import TASKS\n"
        "row = {'id': '0', 'cell': {}, 'prediction': 'a, b', 'reference': {'task': 'ifeval',"
        " 'document': {'key': 1, 'prompt': 'p', 'kwargs': [{}],"
        " 'instruction_id_list': ['punctuation:no_comma']}}}\n"
        "assert TASKS['short/ifeval']().parts(row)[1].scores['inst_level_strict_acc'] == 0\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
