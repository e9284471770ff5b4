"""LongBench is asked and scored as its official code does it."""

from __future__ import annotations

import gzip
import json
import os
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from allmem.errors import AllMemError
from allmem.evaluation.bad_rows import collected_bad_rows
from allmem.evaluation.metrics import text
from allmem.evaluation.metrics.longbench import code_similarity
from allmem.evaluation.metrics.rouge_l import (
    STEPS,
    STEPS_CHINESE,
    rouge_l,
    rouge_l_chinese,
)
from allmem.evaluation.prompting import make_prompt
from allmem.evaluation.suites.longbench import GROUPS, SETS, TASKS, LongBench
from allmem.evaluation.suites.row_task import longest_prompt
from allmem.evaluation.task import Setting
from tests.evaluation.benchmark_files import MODEL, examples, put, row, vector_name, vectors

DATA = os.environ.get("ALLMEM_DATA")


@pytest.mark.parametrize("vector", vectors("longbench"), ids=vector_name)
def test_made_up_answers_get_the_official_score(vector: dict[str, Any]) -> None:
    task = LongBench(vector["set"])
    reference = {"answers": vector["answers"], "all_classes": vector.get("all_classes")}
    score = task.score(vector["prediction"], reference)[task.metric]
    assert score == pytest.approx(vector["score"], abs=1e-12)


@pytest.mark.skipif(DATA is None, reason="ALLMEM_DATA names no folder with metric_fixtures")
def test_real_answers_get_the_official_score() -> None:
    path = Path(DATA or "") / "metric_fixtures" / "longbench_official.jsonl.gz"
    lines = gzip.decompress(path.read_bytes()).splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 237
    for one in rows:
        task = LongBench(one["dataset"])
        reference = {"answers": one["answers"], "all_classes": one.get("all_classes")}
        score = task.score(one["pred"], reference)[task.metric]
        assert score == pytest.approx(one["score"], abs=1e-6), one["id"]


def test_rouge_l_is_that_of_the_package() -> None:
    package = pytest.importorskip("rouge").Rouge(metrics=["rouge-l"])
    draw = random.Random(0)
    for _ in range(300):
        one, other = (
            "".join(draw.choice(["a ", "b ", "c ", "d. ", "e", ".", " "]) for _ in range(length))
            for length in (draw.randint(1, 30), draw.randint(1, 30))
        )
        try:
            expected = package.get_scores([one], [other], avg=True)["rouge-l"]["f"]
        except ValueError:
            expected = 0.0
        assert rouge_l(one, other) == expected, (one, other)


def test_rouge_l_gives_up_where_the_official_code_does() -> None:
    def answer(steps: int) -> str:
        return " ".join(["w", *(f"d{i}" for i in range(steps - 2))])

    assert rouge_l(answer(STEPS), "w r") > 0
    assert rouge_l(answer(STEPS + 1), "w r") == 0
    assert rouge_l_chinese(answer(STEPS_CHINESE), "w r") > 0
    assert rouge_l_chinese(answer(STEPS_CHINESE + 1), "w r") == 0


def test_code_similarity_is_that_of_fuzzywuzzy() -> None:
    fuzz = pytest.importorskip("fuzzywuzzy.fuzz")
    if fuzz.SequenceMatcher.__module__ != "difflib":
        pytest.skip("python-Levenshtein is installed, which fuzzywuzzy then takes")
    draw = random.Random(0)
    for _ in range(300):
        one, other = ("".join(draw.choices("abc ()", k=draw.randint(0, 40))) for _ in range(2))
        assert code_similarity(one, other) == fuzz.ratio(one, other) / 100


def test_jieba_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    text._cutter.cache_clear()
    assert text.chinese_words("北方的河流，每年春天都会涨水。")[0] == "北方"
    assert capfd.readouterr() == ("", "")


def test_missing_package_names_the_extra() -> None:
    with pytest.raises(AllMemError, match=r"pip install 'allmem\[eval\]'"):
        text.eval_package("no_such_module", "nothing")


def test_groups_are_the_official_ones() -> None:
    assert len(GROUPS["longbench"]) == 21
    assert len(GROUPS["longbench-e"]) == 13
    assert set(GROUPS["longbench-paper"]) == {
        f"longbench/{name}"
        for name in ("dureader", "hotpotqa", "musique", "narrativeqa", "qmsum", "triviaqa")
    }
    for members in GROUPS.values():
        for name in members:
            assert TASKS[name]().name == name


def test_six_sets_are_continued_without_a_chat_template(tmp_path: Path) -> None:
    plain = {name for name, rules in SETS.items() if not rules["chat"]}
    assert plain == {"trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"}
    put(tmp_path / "triviaqa.jsonl", [row()])
    official, paper = (
        examples(LongBench("triviaqa"), tmp_path, protocol=protocol)[0].ask
        for protocol in ("official", "paper")
    )
    assert (official.chat, official.max_new_tokens, official.longest) == (False, 32, 7500)
    assert (paper.chat, paper.max_new_tokens, paper.longest) == (True, 32768, 131072)
    assert official.text == paper.text
    assert str(official.text).endswith("\n\nText 0. The lamp is blue.\n\nWhat colour is lamp 0?")


def test_only_samsum_ends_with_its_line(tmp_path: Path) -> None:
    for name in ("samsum", "qmsum"):
        put(tmp_path / f"{name}.jsonl", [row()])
    assert examples(LongBench("samsum"), tmp_path)[0].ask.ends_at == "\n"
    assert examples(LongBench("qmsum"), tmp_path)[0].ask.ends_at == ""


@pytest.mark.parametrize(
    ("reach", "longest"),
    [
        (4096, 3500),
        (8192, 7500),
        (16384, 15500),
        (32768, 31500),
        (200_000, 199_500),
        (256, 128),
        (None, None),
    ],
)
def test_prompts_are_cut_as_the_official_tables_say(reach: int | None, longest: int | None) -> None:
    assert longest_prompt(reach) == longest


def test_user_can_cut_otherwise(tmp_path: Path) -> None:
    put(tmp_path / "qmsum.jsonl", [row()])
    ask = examples(LongBench("qmsum"), tmp_path)[0].ask
    letters = SimpleNamespace(
        tokenizer=cast(Any, _Letters()), reach=replace(ask).longest, label="letters", bounded=False
    )
    prompt = make_prompt(ask, cast(Any, letters), Setting(truncate=20))
    text = str(ask.text)
    assert prompt.text == text[:10] + text[-10:]
    assert prompt.cut == len(text) - 20


class _Letters:
    """A token per character."""

    chat_template = None

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text]}

    def decode(self, ids: list[int], **options: Any) -> str:
        return "".join(map(chr, ids))


def test_buckets_of_longbench_e_are_cells_with_limits_of_their_own(tmp_path: Path) -> None:
    lengths = [100, 3999, 4000, 7999, 8000, 20_000, 5]
    put(
        tmp_path / "trec_e.jsonl",
        [row(i, length=length, all_classes=["blue", "red"]) for i, length in enumerate(lengths)],
    )
    task = LongBench("trec", extended=True)
    found = {one.id: one.cell["length"] for one in examples(task, tmp_path)}
    assert [found[f"row-{i}"] for i in range(7)] == [
        "0-4k",
        "0-4k",
        "4-8k",
        "4-8k",
        "8k+",
        "8k+",
        "0-4k",
    ]
    limited = examples(task, tmp_path, limit=1)
    assert sorted(one.id for one in limited) == ["row-0", "row-2", "row-4"]


def test_limit_takes_the_first_rows_of_the_file(tmp_path: Path) -> None:
    put(tmp_path / "qmsum.jsonl", [*(row(i) for i in range(5)), "not read any more"])
    assert [one.id for one in examples(LongBench("qmsum"), tmp_path, limit=3)] == [
        "row-0",
        "row-1",
        "row-2",
    ]


def test_rows_without_or_with_the_same_id_are_told_apart(tmp_path: Path) -> None:
    nameless = {key: value for key, value in row(1).items() if key != "_id"}
    put(tmp_path / "qmsum.jsonl", [row(0), row(0), nameless, {**nameless, "id": 5}])
    found = [one.id for one in examples(LongBench("qmsum"), tmp_path)]
    assert found == ["row-0", "row-0#2", "line-3", "5"]


BAD = {
    "no-context": ({"context": None}, "'context' is missing"),
    "context-no-text": ({"context": 3}, "'context' is a int"),
    "empty-context": ({"context": " "}, "'context' is empty"),
    "empty-question": ({"input": ""}, "'input' is empty"),
    "no-answers": ({"answers": []}, "'answers' has no answer"),
    "empty-answers": ({"answers": [" "]}, "'answers' has no answer"),
    "one-text": ({"answers": "blue"}, "not a list of texts"),
    "wrong-language": ({"language": "zh"}, "its language is 'zh'"),
}


@pytest.mark.parametrize(("values", "said"), BAD.values(), ids=BAD)
def test_bad_row_is_an_error_with_its_line_or_left_out(
    tmp_path: Path, values: dict[str, Any], said: str
) -> None:
    put(tmp_path / "hotpotqa.jsonl", [row(0), row(1, **values), row(2)])
    with pytest.raises(AllMemError, match=rf"hotpotqa\.jsonl, line 2: .*{said}"):
        examples(LongBench("hotpotqa"), tmp_path)
    with collected_bad_rows() as bad:
        kept = examples(LongBench("hotpotqa"), tmp_path, skip_bad_rows=True)
    assert [one.id for one in kept] == ["row-0", "row-2"]
    assert len(bad) == 1


def test_rows_need_what_their_metric_needs(tmp_path: Path) -> None:
    put(tmp_path / "trec.jsonl", [row()])
    put(tmp_path / "passage_retrieval_en.jsonl", [row()])
    put(tmp_path / "trec_e.jsonl", [row(all_classes=["blue"], length="long")])
    for task, said in (
        (LongBench("trec"), "'all_classes'"),
        (LongBench("passage_retrieval_en"), "names no paragraph"),
        (LongBench("trec", extended=True), "'length'"),
    ):
        with pytest.raises(AllMemError, match=said):
            examples(task, tmp_path)


def test_a_file_without_one_good_row_is_an_error(tmp_path: Path) -> None:
    put(tmp_path / "qmsum.jsonl", ["{"])
    with collected_bad_rows(), pytest.raises(AllMemError, match="not one row"):
        examples(LongBench("qmsum"), tmp_path, skip_bad_rows=True)


def test_row_in_a_run_gives_its_score(tmp_path: Path) -> None:
    put(tmp_path / "hotpotqa.jsonl", [row()])
    task = LongBench("hotpotqa")
    example = next(iter(task.examples(Setting(data=tmp_path), MODEL)))
    stored = json.loads(
        json.dumps({"prediction": "It is blue", "reference": example.reference, "cell": {}})
    )
    (part,) = task.parts(stored)
    assert part.scores == {"qa_f1": 0.5}
