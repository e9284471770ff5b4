"""LV-Eval is asked and scored as its official code does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from allmem.errors import AllMemError
from allmem.evaluation.metrics.lveval import keyword_f1, keyword_f1_chinese
from allmem.evaluation.suites.lveval import GROUPS, SETS, TASKS, LVEval
from tests.evaluation.benchmark_files import examples, put, row, vector_name, vectors


@pytest.mark.parametrize("vector", vectors("lveval"), ids=vector_name)
def test_made_up_answers_get_the_official_score(vector: dict[str, Any]) -> None:
    task = LVEval(vector["set"], "16k")
    reference = {"answers": vector["answers"], "keywords": vector["keywords"]}
    score = task.score(vector["prediction"], reference)[task.metric]
    assert score == pytest.approx(vector["score"], abs=1e-12)


def test_only_the_first_answer_counts(tmp_path: Path) -> None:
    put(tmp_path / "factrecall_en_16k.jsonl", [row(answers=["red", "blue"])])
    task = LVEval("factrecall_en", "16k")
    reference = examples(task, tmp_path)[0].reference
    assert task.score("blue", reference)[task.metric] == 0
    assert task.score("red", reference)[task.metric] == 1


def test_keywords_are_a_gate(tmp_path: Path) -> None:
    put(tmp_path / "loogle_SD_mixup_16k.jsonl", [row(answers=["a lamp"], answer_keywords="lamp")])
    task = LVEval("loogle_SD_mixup", "16k")
    reference = examples(task, tmp_path)[0].reference
    assert task.score("some lamp", reference)[task.metric] > 0
    assert keyword_f1("one two", "one two", "three") == 0
    assert keyword_f1("one two", "one two", None) == 1


def test_keywords_without_a_word_score_zero_where_the_official_code_fails() -> None:
    assert keyword_f1("the lamp", "the lamp", "the") == 0
    assert keyword_f1_chinese("灯", "。", None) == 0


def test_groups_cover_every_length_with_and_without_factrecall() -> None:
    assert len(TASKS) == 55
    assert len(GROUPS["lveval"]) == 55
    for length in ("16k", "32k", "64k", "128k", "256k"):
        assert set(GROUPS[f"lveval-{length}"]) == {f"lveval/{name}_{length}" for name in SETS}
        left = set(GROUPS[f"lveval-{length}"]) - set(GROUPS[f"lveval-{length}-without-factrecall"])
        assert left == {f"lveval/factrecall_en_{length}", f"lveval/factrecall_zh_{length}"}
    for name, make in TASKS.items():
        assert make().name == name


@pytest.mark.parametrize("place", ["lveval", "LVEval/cmrc_mixup", ".", "lveval/data"])
def test_rows_are_read_from_the_archives_as_published(tmp_path: Path, place: str) -> None:
    rows = [row(context="灯是蓝色的。", input="灯是什么颜色？", answers=["蓝色"], language="zh")]
    folder = tmp_path / place
    if place == "lveval/data":
        put(folder / "cmrc_mixup.zip", rows, "cmrc_mixup/cmrc_mixup_128k.jsonl")
        put(folder / "cmrc_mixup.zip", [], "cmrc_mixup/cmrc_mixup_64k.jsonl")
    else:
        put(folder / "cmrc_mixup_128k.jsonl", rows)
    (example,) = examples(LVEval("cmrc_mixup", "128k"), tmp_path)
    assert example.cell == {"length": "128k"}
    assert (example.ask.max_new_tokens, example.ask.longest) == (64, 7500)
    assert str(example.ask.text).endswith("\n\n问题：灯是什么颜色？\n回答：")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"answers": ["", "blue"]}, "the first answer"),
        ({"answer_keywords": ["blue"]}, "'answer_keywords' is a list"),
        ({"language": "zh"}, "its language"),
        ({"input": ""}, "'input' is empty"),
    ],
    ids=["empty-answer", "keywords", "language", "no-question"],
)
def test_bad_row_is_an_error_with_its_line(
    tmp_path: Path, values: dict[str, Any], said: str
) -> None:
    put(tmp_path / "factrecall_en_16k.jsonl", [row(**values)])
    with pytest.raises(AllMemError, match=rf"line 1: .*{said}"):
        examples(LVEval("factrecall_en", "16k"), tmp_path)
