"""InfiniteBench is asked and scored as its official code does it."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from allmem.errors import AllMemError
from allmem.evaluation.grouping import common_beginning
from allmem.evaluation.metrics.infinitebench import METRICS, math_calc
from allmem.evaluation.prompting import cut_middle
from allmem.evaluation.runner import evaluate
from allmem.evaluation.suites.infinitebench import GROUPS, SETS, TASKS, InfiniteBench
from allmem.evaluation.task import Setting
from tests.evaluation.benchmark_files import MODEL, examples, put, vector_name, vectors
from tests.evaluation.made_runs import MadeModel


def book_row(number: int, **values: Any) -> dict[str, Any]:
    return {
        "id": number,
        "context": f"Book {number % 2}. The lamp is blue.",
        "input": f"What colour is lamp {number}?",
        "answer": ["blue"],
        "options": [],
        **values,
    }


@pytest.mark.parametrize("vector", vectors("infinitebench"), ids=vector_name)
def test_made_up_answers_get_the_official_score(vector: dict[str, Any]) -> None:
    if vector["set"] == "longbook_sum_eng":
        pytest.importorskip("rouge_score")
    score = METRICS[vector["set"]][1](vector["prediction"], vector["answer"])
    assert score == pytest.approx(vector["score"], abs=1e-12)


def test_a_number_that_is_no_whole_one_scores_zero_where_the_official_code_fails() -> None:
    assert METRICS["math_find"][1]("3.5", [3]) == 0
    assert math_calc("9" * 5000, [9]) == 0


def test_questions_about_a_book_follow_one_another_and_begin_alike(tmp_path: Path) -> None:
    put(tmp_path / "longbook_qa_eng.jsonl", [book_row(i) for i in range(5)])
    found = examples(InfiniteBench("longbook_qa_eng"), tmp_path)
    assert [one.id for one in found] == ["0", "2", "4", "1", "3"]
    one, other = (str(example.ask.text) for example in found[:2])
    shared = one[: common_beginning(one, other)]
    assert shared.startswith("Read the book and answer the question.")
    assert shared.endswith("Book 0. The lamp is blue.\n\nQuestion: What colour is lamp ")


def test_a_run_holds_the_books_of_one_task_once(tmp_path: Path) -> None:
    """However many questions there are about each, and whichever task came before."""
    books, questions, length = 40, 4, 100_000
    names = "longbook_qa_eng", "longbook_sum_eng"
    for name in names:
        rows = [
            book_row(i, context=f"{name} {i % books} " + "word " * (length // 5), input=f"{i}?")
            for i in range(books * questions)
        ]
        put(tmp_path / f"{name}.jsonl", rows)
        del rows
    tracemalloc.start()
    try:
        tasks = [InfiniteBench(name) for name in names]
        evaluate([MadeModel("m", {})], tasks, Setting(data=tmp_path), tmp_path / "run", batch=2)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.75 * books * length


def test_limit_takes_the_first_rows_of_the_file(tmp_path: Path) -> None:
    put(tmp_path / "longbook_qa_eng.jsonl", [book_row(i) for i in range(5)])
    found = examples(InfiniteBench("longbook_qa_eng"), tmp_path, limit=3)
    assert sorted(one.id for one in found) == ["0", "1", "2"]


def test_open_prompts_are_continued_and_chat_prompts_are_conversations(tmp_path: Path) -> None:
    put(tmp_path / "longbook_qa_eng.jsonl", [book_row(0)])
    far = cast(Any, SimpleNamespace(tokenizer=None, reach=None, bounded=False))
    plain = examples(InfiniteBench("longbook_qa_eng"), tmp_path, far)[0].ask
    chat = examples(InfiniteBench("longbook_qa_eng", chat=True), tmp_path, far)[0].ask
    assert (plain.chat, plain.longest, plain.max_new_tokens) == (False, 131072, 40)
    assert (chat.chat, chat.longest, chat.system) == (True, 127_000, "You are a helpful assistant")
    assert str(plain.text).endswith("\nAnswer:")
    assert str(chat.text).endswith("\n\nBe very concise.")


def test_paper_asks_as_a_chat_and_cuts_at_128k(tmp_path: Path) -> None:
    put(tmp_path / "longbook_qa_eng.jsonl", [book_row(0)])
    ask = examples(InfiniteBench("longbook_qa_eng"), tmp_path, protocol="paper")[0].ask
    assert (ask.chat, ask.longest, ask.max_new_tokens) == (True, 131072, 32768)
    assert ask.least_new_tokens is None
    server = cast(Any, SimpleNamespace(tokenizer="known", reach=131072, bounded=True))
    ask = examples(InfiniteBench("longbook_qa_eng"), tmp_path, server, protocol="paper")[0].ask
    assert ask.least_new_tokens == 40, "a server's reach has no room for both"


@pytest.mark.parametrize(("reach", "longest"), [(8192, 7500), (131072, 131072), (262144, 131072)])
def test_prompts_are_cut_to_what_the_model_reads(tmp_path: Path, reach: int, longest: int) -> None:
    put(tmp_path / "passkey.jsonl", [book_row(0)])
    model = cast(Any, SimpleNamespace(tokenizer=None, reach=reach, bounded=False))
    assert examples(InfiniteBench("passkey"), tmp_path, model)[0].ask.longest == longest


def test_cut_halves_become_text_as_one(tmp_path: Path) -> None:
    class Bytes:
        def __call__(self, text: str) -> dict[str, list[int]]:
            return {"input_ids": list(text.encode())}

        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            return bytes(ids).decode(errors="replace")

    put(tmp_path / "passkey.jsonl", [book_row(0)])
    assert examples(InfiniteBench("passkey"), tmp_path)[0].ask.joined
    # The first byte of a letter from the first half, its second from the last.
    assert cut_middle(Bytes(), "éxé", 2, joined=True)[0] == "é"
    assert cut_middle(Bytes(), "éxé", 2)[0] == "��"


@pytest.mark.parametrize("name", SETS)
def test_every_set_makes_a_prompt_and_a_reference(tmp_path: Path, name: str) -> None:
    values: dict[str, Any] = {}
    if name == "code_run":
        values = {"input": "What does func_12(-3) return?", "answer": 4}
    elif name == "math_find":
        values = {"input": "The smallest number of the list is:", "answer": [4]}
    elif name == "math_calc":
        values = {"answer": [1, 2, 3]}
    elif name in ("code_debug", "longbook_choice_eng"):
        values = {"options": ["red", "blue", "green", "grey"], "answer": "blue"}
    put(tmp_path / f"{name}.jsonl", [book_row(0, **values)])
    task = InfiniteBench(name)
    (example,) = examples(task, tmp_path)
    text = str(example.ask.text)
    assert "{" not in text
    assert "The lamp is blue." in text
    if name in ("code_debug", "longbook_choice_eng"):
        assert example.reference == {"answer": ["blue", "B"]}
    if name == "code_run":
        assert "The value of func_12(-3) is" in text
        assert task.score("it is 4", example.reference) == {task.metric: 1.0}
    if name == "math_find":
        assert "What is the smallest number in the following list?" in text


def test_bare_answer_is_not_taken_letter_by_letter(tmp_path: Path) -> None:
    put(tmp_path / "longbook_qa_eng.jsonl", [book_row(0, answer="blue")])
    task = InfiniteBench("longbook_qa_eng")
    reference = examples(task, tmp_path)[0].reference
    assert task.score("blue", reference) == {"qa_f1": 1.0}


def test_groups_name_tasks() -> None:
    assert len(GROUPS["infinitebench"]) == 5
    assert len(GROUPS["infinitebench-all"]) == 12
    for members in GROUPS.values():
        for name in members:
            assert TASKS[name]().name == name


BAD = {
    "no-answer": ("passkey", {"answer": []}, "'answer' is empty"),
    "empty-answer": ("passkey", {"answer": [" "]}, "'answer' is empty"),
    "wrong-type": ("passkey", {"answer": [5]}, "wrong type"),
    "no-number": ("math_find", {"answer": ["5"]}, "wrong type"),
    "no-input": ("kv_retrieval", {"input": None}, "'input' is missing"),
    "no-options": ("code_debug", {"options": None}, "'options'"),
    "not-an-option": ("code_debug", {"options": ["a", "b", "c", "d"]}, "not among its options"),
    "no-call": ("code_run", {"answer": [1]}, "no function call"),
    "no-target": ("math_find", {"answer": [1]}, "no number is asked for"),
}


@pytest.mark.parametrize(("name", "values", "said"), BAD.values(), ids=BAD)
def test_bad_row_is_an_error_with_its_line(
    tmp_path: Path, name: str, values: dict[str, Any], said: str
) -> None:
    put(tmp_path / f"{name}.jsonl", [book_row(0, **values)])
    with pytest.raises(AllMemError, match=rf"line 1: .*{said}"):
        examples(InfiniteBench(name), tmp_path, MODEL)
