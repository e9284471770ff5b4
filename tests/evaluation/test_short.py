"""The list of short tasks, and LiveCodeBench, which lm-eval does not have."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import pickle
import zlib
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from allmem.errors import AllMemError
from allmem.evaluation.catalog import find_tasks
from allmem.evaluation.harness.code_task import SAMPLES, SAMPLING
from allmem.evaluation.harness.livecodebench import (
    Problem,
    Trial,
    extract_code,
    judge,
    pass_at_k,
    read_problem,
)
from allmem.evaluation.harness.sandbox import Limits
from allmem.evaluation.model import EvaluatedModel, Prompt
from allmem.evaluation.rows import RowsFile
from allmem.evaluation.run_scores import run_scores
from allmem.evaluation.runner import evaluate
from allmem.evaluation.scores import Score
from allmem.evaluation.suites.short import GROUPS, TASKS
from allmem.evaluation.task import Setting
from allmem.evaluation.verdicts import add_verdicts, with_verdicts
from allmem.reading import Sampling
from tests.data.tokenizers import small_tokenizer
from tests.evaluation.answering import Recorder
from tests.evaluation.short_rows import LCB_ROWS, write_rows

RIGHT = {
    "abc1_a": "Think.\n```python\nx = float(input())\nprint(2 * x)\n```\nDone.",
    "3000": "```python\nclass Solution:\n    def add(self, a: List[int], b):\n"
    "        return a + b\n```",
}


class Programmer(Recorder):
    """Gives right programs to the first so many requests for each problem."""

    label = "programmer"

    def __init__(self, right: int, tokenizer: Any = None) -> None:
        super().__init__(tokenizer)
        self.right = right

    def say(self, prompt: Prompt) -> str:
        if len(self.how) > self.right:
            return "None."
        return RIGHT["abc1_a"] if "number" in prompt.text else RIGHT["3000"]


def answered(data: Path, model: EvaluatedModel, **chosen: Any) -> list[dict[str, Any]]:
    setting = Setting(data=data, **chosen)
    task = TASKS["short/livecodebench_v5"]()
    examples = list(task.examples(setting, model))
    rows = task.answer(model, examples, setting)
    return [
        json.loads(json.dumps({"id": e.id, "cell": e.cell, "reference": e.reference, **row}))
        for e, row in zip(examples, rows, strict=True)
    ]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_rows(tmp_path, {"livecodebench_v5.jsonl": LCB_ROWS})


def test_groups_name_the_papers_table() -> None:
    assert len(GROUPS["short-paper"]) == 10
    assert set(GROUPS["short-paper"]) - set(GROUPS["short"]) == {"short/livecodebench_v5"}
    tasks, groups = find_tasks(["short-paper"])
    assert [task.name for task in tasks] == list(GROUPS["short-paper"])
    assert set(groups) == {"short", "short-paper"}
    assert all(make().name == name for name, make in TASKS.items())


def test_prompts_are_the_benchmarks() -> None:
    """By their hash: what the official code made of these two rows."""
    program, function = map(read_problem, LCB_ROWS)
    assert program.prompt.startswith("### Question:\nPrint twice the number.\n\n### Format: Read ")
    assert program.prompt.endswith("```python\n# YOUR CODE HERE\n```\n\n### Answer: (use the "
                                   "provided format with backticks)\n\n")  # fmt: skip
    digests = [hashlib.sha256(p.prompt.encode()).hexdigest()[:16] for p in (program, function)]
    assert digests == ["be7c258d2874e350", "dbc6cd67978c3a63"]


def test_braces_in_a_problem_stay(data: Path) -> None:
    row = LCB_ROWS[1] | {"question_content": "Print {question} and {starter_code}."}
    assert "### Question:\nPrint {question} and {starter_code}.\n" in read_problem(row).prompt


def test_programs_are_run_and_scored_where_it_is_asked_for(data: Path) -> None:
    model = Programmer(right=3)
    rows = answered(data, model, run_code=True)
    assert [row["outcomes"] for row in rows] == [
        [["pass", "pass"]] * 3 + [["error"]] * 7,
        [["pass"]] * 3 + [["error"]] * 7,
    ]
    (part,) = TASKS["short/livecodebench_v5"]().parts(rows[0])
    assert part.cell == {"difficulty": "easy"}
    assert part.scores == pytest.approx({"pass@1": 0.3, "pass@5": 1 - 21 / 252})
    used = dataclasses.replace(SAMPLING, seed=0)
    assert model.how == [used] * SAMPLES
    assert all(row["sampling"] == dataclasses.asdict(used) for row in rows)
    assert len(set(model.numbers)) == 2 * SAMPLES
    assert [m["role"] for m in model.asked[0].messages or []] == ["system", "user"]


def test_nothing_is_run_unasked(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a program was run")

    monkeypatch.setattr("allmem.evaluation.harness.code_task.judge", refuse)
    with pytest.warns(UserWarning, match="--run-code"):
        rows = answered(data, Programmer(1))
    assert all("outcomes" not in row and len(row["predictions"]) == SAMPLES for row in rows)
    assert TASKS["short/livecodebench_v5"]().parts(rows[0]) == []


def test_a_sandbox_with_a_hole_is_told_of(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = (["pass"], {"network": False, "files": True, "processes": True})
    monkeypatch.setattr("allmem.evaluation.harness.code_task.judge", lambda *_: found)
    with pytest.warns(UserWarning, match="reach: network;"):
        rows = answered(data, Programmer(10), run_code=True, limit=1)
    assert rows[0]["isolation"] == found[1]


def test_a_model_without_turns_reads_the_system_message_too(data: Path) -> None:
    tokenizer = small_tokenizer()
    tokenizer.chat_template = None
    model = Programmer(0, tokenizer)
    answered(data, model, run_code=True, limit=1)
    assert model.asked[0].text.startswith("You are an expert Python programmer.")
    assert model.asked[0].messages is None


def test_the_papers_protocol_samples_as_the_user_says(data: Path) -> None:
    model = Programmer(0)
    answered(data, model, protocol="paper", sampling=Sampling(0.6, 0.95, 20), run_code=True)
    assert model.how == [Sampling(0.6, 0.95, 20)] * SAMPLES
    greedy = Programmer(0)
    answered(data, greedy, protocol="paper", run_code=True)
    assert len(greedy.how) == 1


def test_the_likeliest_token_is_taken_where_the_user_says_so(data: Path) -> None:
    """Not the benchmark's own samples, and the row tells which it was."""
    model = Programmer(0)
    rows = answered(data, model, greedy=True, run_code=True)
    assert model.how == [Sampling()]
    assert [row["sampling"]["temperature"] for row in rows] == [0, 0]
    warm = Programmer(0)
    rows = answered(data, warm, sampling=Sampling(0.5, seed=1), run_code=True)
    assert warm.how == [Sampling(0.5, seed=1)] * SAMPLES
    assert rows[0]["sampling"]["temperature"] == 0.5


def test_the_paper_allows_long_programs(data: Path) -> None:
    for reach, new in ((None, 32_768), (20_000, 20_000), (100, 2000)):
        model = Programmer(0, small_tokenizer())
        model.reach = reach
        answered(data, model, protocol="paper", run_code=True, limit=1)
        length = len(model.asked[0].ids or ()) if reach == 20_000 else 0
        assert model.asked[0].max_new_tokens == new - length
    official = Programmer(0)
    answered(data, official, run_code=True, limit=1)
    assert official.asked[0].max_new_tokens == 2000


def run_folder(folder: Path, data: Path, model: Programmer, **chosen: Any) -> Path:
    """Where the rows are."""
    tasks = [TASKS["short/livecodebench_v5"]()]
    run = evaluate([model], tasks, Setting(data=data, **chosen), folder, batch=1)
    return run.path(model.label, tasks[0].name)


def score(folder: Path) -> Score:
    """Of the only task in it."""
    (one,) = run_scores(folder).tasks.values()
    return one.overall


def test_stored_answers_are_judged_afterwards(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.warns(UserWarning, match="same command with --run-code judges them"):
        path = run_folder(folder, data, Programmer(10))
    stored = path.read_bytes()
    assert score(folder).n == 0
    again = Programmer(0)
    run_folder(folder, data, again, run_code=True)
    assert again.asked == [], "no answer is asked for twice"
    assert path.read_bytes() == stored
    rows = RowsFile(path).rows()
    assert rows[0]["outcomes"][0] == ["pass", "pass"]
    assert score(folder).n == 2
    at_once = run_folder(tmp_path / "other", data, Programmer(10), run_code=True)
    assert [row["outcomes"] for row in RowsFile(at_once).rows()] == [r["outcomes"] for r in rows]


def test_judging_goes_on_where_it_was_killed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.warns(UserWarning, match="not scored"):
        path = run_folder(tmp_path / "run", data, Programmer(1))
    judged: list[str] = []

    def verdict(code: str, problem: Problem, *_: Any) -> tuple[list[str], dict[str, bool]]:
        judged.append(problem.id)
        if len(judged) > SAMPLES:
            raise KeyboardInterrupt
        return ["pass"], {}

    monkeypatch.setattr("allmem.evaluation.harness.code_task.judge", verdict)
    with pytest.raises(KeyboardInterrupt):
        run_folder(tmp_path / "run", data, Programmer(0), run_code=True)
    first = judged[0]
    judged.clear()
    monkeypatch.setattr(
        "allmem.evaluation.harness.code_task.judge",
        lambda code, problem, *_: (judged.append(problem.id), (["pass"], {}))[1],
    )
    # A line that was cut off does not count.
    beside = path.with_suffix(".judged.ndjson")
    beside.write_bytes(beside.read_bytes() + b'{"id": "cut o')
    run_folder(tmp_path / "run", data, Programmer(0), run_code=True)
    assert set(judged).isdisjoint({first})
    assert all("outcomes" in row for row in RowsFile(path).rows())


def test_a_verdict_counts_for_its_answer_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = {"id": "a", "predictions": ["one"]}
    add_verdicts(path, [row], lambda row: {"outcomes": [["pass"]]})
    other = row | {"predictions": ["two"]}
    assert with_verdicts(path, [row, other]) == [row | {"outcomes": [["pass"]]}, other]


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("a\n```python\nx\ny\n```\nb", "x\ny"),
        ("```\nfirst\n```\n```python\nlast\n```", "last"),
        ("```python\nnever closed", ""),
        ("no code", ""),
        ("``` one line ```\nbetween\n```", "between"),
    ],
)
def test_code_stands_between_the_last_two_fences(answer: str, code: str) -> None:
    assert extract_code(answer) == code


@pytest.mark.parametrize(
    ("printed", "expected", "verdict"),
    [
        ("1 2 \n 3\n\n", "1 2\n3", "pass"),
        ("1.0 2", "1 2.00", "pass"),
        ("50000000000000000", "50000000000000001", "wrong"),
        ("1\n2", "1 2", "wrong"),
        ("Yes", "YES", "wrong"),
        ("1\n\n2", "1\n2", "wrong"),
    ],
    ids=["spaces", "numbers", "large", "lines", "case", "empty-line"],
)
def test_outputs_are_compared_as_officially(printed: str, expected: str, verdict: str) -> None:
    problem = Problem("p", "", "", "", "", "", None, (Trial("", expected),))
    assert judge(f"print({printed!r})", problem)[0] == [verdict]


def test_tests_end_with_the_first_failure() -> None:
    tests = (Trial("1", "1"), Trial("loop", "1"), Trial("1", "1"))
    problem = Problem("p", "", "", "", "", "", None, tests)
    code = "x = input()\nwhile x == 'loop': pass\nprint(x)"
    assert judge(code, problem, Limits(seconds=1))[0] == ["pass", "timeout"]


def test_pass_at_k_is_the_share_of_draws_with_a_right_answer() -> None:
    for right in range(6):
        answers = [1] * right + [0] * (5 - right)
        for k in (1, 2, 5):
            draws = [any(draw) for draw in combinations(answers, k)]
            assert pass_at_k(5, right, k) == pytest.approx(sum(draws) / len(draws), abs=1e-12)


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("/tmp/allmem-evil"),))


@pytest.mark.parametrize(
    "change",
    [
        {"private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(_Evil()))).decode()},
        {"private_test_cases": "no base64!"},
        {"question_content": None, "private_test_cases": None},
    ],
    ids=["calls", "garbage", "none"],
)
def test_rows_that_cannot_be_read_are_named(tmp_path: Path, change: dict[str, Any]) -> None:
    write_rows(tmp_path, {"livecodebench_v5.jsonl": [LCB_ROWS[0], LCB_ROWS[1] | change]})
    with pytest.raises(AllMemError, match=r"livecodebench_v5\.jsonl, line 2"):
        answered(tmp_path, Programmer(0), run_code=True)
    assert not Path("/tmp/allmem-evil").exists()


def test_the_hubs_five_files_are_one_release(tmp_path: Path) -> None:
    folder = tmp_path / "code_generation_lite"
    folder.mkdir()
    for number, name in enumerate(("test", "test2", "test3", "test4", "test5", "test6")):
        write_rows(folder, {f"{name}.jsonl": [LCB_ROWS[0] | {"question_id": str(number)}]})
    rows = answered(tmp_path, Programmer(0), run_code=True)
    assert [row["id"] for row in rows] == list("01234")
