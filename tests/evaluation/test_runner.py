"""A run: rows as they come, gone on with wherever it was cut off, and what it refuses."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from allmem.errors import AllMemError
from allmem.evaluation import runner
from allmem.evaluation.checks import locked
from allmem.evaluation.digest import fingerprint
from allmem.evaluation.model import EvaluatedModel
from allmem.evaluation.rows import Run
from allmem.evaluation.run_scores import RunScores, run_scores
from allmem.evaluation.runner import RunProgress, evaluate
from allmem.evaluation.task import Example, FilledTemplate, Request, Setting
from allmem.reading import Sampling
from tests.evaluation.answering import converted, plain
from tests.evaluation.interrupted import BATCH, run
from tests.evaluation.tasks import Letters

ROOT = Path(__file__).parents[2]
TASKS = {name: Letters(name) for name in ("letters/one", "letters/two")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.jsonl"))
    }


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def figures(scores: RunScores) -> list[Any]:
    overall = {key: (one.overall, one.cells()) for key, one in scores.tasks.items()}
    return [overall, scores.groups, scores.differences, scores.group_differences]


def test_rows_hold_what_scores_need(whole: Path) -> None:
    found = Run(whole)
    assert found.labels == ["converted", "plain"]
    assert found.baseline == "plain"
    rows = found.rows("converted", "letters/one").rows()
    assert sorted(row["id"] for row in rows) == sorted(f"example-{i}" for i in range(13))
    for row in rows:
        assert row["cell"] == {"length": 40, "depth": row["reference"]["answer"] % 3}
        assert isinstance(row["prediction"], str)
        assert row["prompt_tokens"] > 40
    header = found.rows("converted", "letters/one").header
    assert header["model"] == found.identity("converted")
    assert header["examples"] == 13


def test_figures_are_those_of_the_rows(whole: Path) -> None:
    scores = run_scores(whole, TASKS)
    one, two = (scores.tasks["converted", name] for name in TASKS)
    rows = Run(whole).rows("converted", "letters/one").rows()
    right = [row["prediction"][:1] in "AEIOU" for row in rows]
    assert one.overall.mean == pytest.approx(100 * sum(right) / 13)
    assert scores.groups["converted", "letters"].mean == pytest.approx(
        (one.overall.mean + two.overall.mean) / 2
    )
    base = scores.tasks["plain", "letters/one"]
    difference = scores.differences["converted", "letters/one"]
    assert difference.mean == pytest.approx(one.overall.mean - base.overall.mean)
    assert ("plain", "letters/one") not in scores.differences
    by_depth = one.cells("depth")
    assert [dict(cell)["depth"] for cell in by_depth] == [0, 1, 2]
    assert sum(score.n for score in by_depth.values()) == 13
    assert one.metrics == ["vowels", "said"]
    assert one.lengths.prompt_longest == max(row["prompt_tokens"] for row in rows)


def test_a_finished_run_answers_nothing_again(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*rest: Any) -> Any:
        raise AssertionError("answered again")

    before, about = files(whole), (whole / "run.json").read_bytes()
    monkeypatch.setattr(Letters, "answer", refuse)
    reports: list[RunProgress] = []
    run(whole, on_progress=reports.append)
    assert files(whole) == before
    assert (whole / "run.json").read_bytes() == about
    assert [(now.done, now.total) for now in reports] == [(13, 13), (7, 7)] * 2


def test_progress_adds_up(tmp_path: Path) -> None:
    reports: list[RunProgress] = []
    run(tmp_path, on_progress=reports.append)
    first = [now.done for now in reports if now.part == 1]
    assert first == [0, 3, 6, 9, 12, 13]
    assert {now.parts for now in reports} == {4}
    assert [now.label for now in reports if now.part == 3] == ["plain"] * 6
    assert reports[-1].seconds_left == 0
    assert all(now.rows_per_second > 0 for now in reports if now.done)


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_run_goes_on_to_the_same_files_and_figures(
    seed: int, whole: Path, tmp_path: Path
) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.evaluation.interrupted", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE) as process:
        target = tmp_path / ("converted" if seed else "plain") / "letters__one.jsonl"
        deadline = time.monotonic() + 120
        while not target.exists():
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(random.Random(seed).uniform(0, 0.4))
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = files(tmp_path)
    assert before != files(whole), "it was not killed in time"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run(tmp_path)
    torch.set_num_threads(threads)
    assert files(tmp_path) == files(whole)
    assert figures(run_scores(tmp_path, TASKS)) == figures(run_scores(whole, TASKS))


def test_a_file_that_was_cut_anywhere_goes_on_to_the_same_bytes(
    whole: Path, tmp_path: Path
) -> None:
    run(tmp_path)
    path = tmp_path / "plain" / "letters__one.jsonl"
    text = path.read_bytes()
    lines = [i + 1 for i, byte in enumerate(text) if byte == ord("\n")]
    for cut in (lines[0], lines[0] + 1, lines[2], lines[3], lines[4] + 9, len(text) - 1):
        path.write_bytes(text[:cut])
        reports: list[RunProgress] = []
        run(tmp_path, on_progress=reports.append)
        assert path.read_bytes() == text, cut
        # The same examples share a batch, or they would be rounded otherwise.
        done = [now.done for now in reports if (now.label, now.task) == ("plain", "letters/one")]
        assert done[0] % BATCH == 0
        assert files(tmp_path) == files(whole)


def test_more_models_and_tasks_may_join_a_run(whole: Path, tmp_path: Path) -> None:
    tasks = [Letters("letters/one"), Letters("letters/two", 7)]
    evaluate([plain()], tasks[:1], Setting(), tmp_path, batch=BATCH)
    evaluate([converted(), plain()], tasks[1:], Setting(), tmp_path, batch=BATCH)
    found = Run(tmp_path)
    assert found.labels == ["plain", "converted"]
    assert found.tasks == list(TASKS)
    scores = run_scores(tmp_path, TASKS)
    assert ("converted", "letters/one") not in scores.tasks
    assert files(tmp_path).items() <= files(whole).items()


OTHERS: dict[str, Callable[[Path], Any]] = {
    "setting.max_new_tokens = None, now it is 4": lambda path: evaluate(
        [plain()], [Letters("letters/one")], Setting(max_new_tokens=4), path
    ),
    "setting.sampling = .*temperature.: 0.0.*now it is .*temperature.: 0.5": lambda path: evaluate(
        [plain()], [Letters("letters/one")], Setting(sampling=Sampling(0.5, seed=0)), path
    ),
    "model.weights = ": lambda path: evaluate(
        [plain(seed=1)], [Letters("letters/one")], Setting(), path
    ),
    "examples = 13, now it is 12": lambda path: evaluate(
        [plain()], [Letters("letters/one", 12)], Setting(), path
    ),
    "fingerprint = ": lambda path: evaluate([plain()], [Reworded("letters/one")], Setting(), path),
    # Another task, which has no rows that could differ.
    "model.weights = .*'plain' was another model.*--label": lambda path: evaluate(
        [plain(seed=1)], [Letters("letters/three")], Setting(), path
    ),
}


class Reworded(Letters):
    """Other prompts, and nothing else."""

    def examples(self, setting: Setting, model: EvaluatedModel) -> Iterable[Example]:
        for example in super().examples(setting, model):
            ask = dataclasses.replace(example.ask, text=example.ask.text[1:])
            yield dataclasses.replace(example, ask=ask)


@pytest.mark.parametrize("named", OTHERS)
def test_another_run_is_refused(named: str, whole: Path) -> None:
    before = everything(whole)
    with pytest.raises(AllMemError, match=f"was begun with {named}"):
        OTHERS[named](whole)
    assert everything(whole) == before


def test_a_label_is_known_by_its_files_too(whole: Path, tmp_path: Path) -> None:
    """Whatever ``run.json`` says."""
    run(tmp_path)
    (tmp_path / "run.json").unlink()
    before = everything(tmp_path)
    with pytest.raises(AllMemError, match=r"letters__one\.jsonl was begun with model\.weights"):
        evaluate([plain(seed=1)], [Letters("letters/three")], Setting(), tmp_path)
    assert everything(tmp_path) == before


def test_later_tasks_are_looked_at_before_anything_is_written(whole: Path) -> None:
    before = everything(whole)
    tasks = [Letters("letters/new"), Letters("letters/one")]
    with pytest.raises(AllMemError, match=r"letters__one\.jsonl was begun with setting\.limit"):
        evaluate([plain()], tasks, Setting(limit=2), whole)
    assert everything(whole) == before


def changed_later(tmp_path: Path, changed: Letters) -> None:
    """Go on with a run that is cut off in its first task, with other data of the second."""
    run(tmp_path)
    path = tmp_path / "converted" / "letters__one.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    tasks = [Letters("letters/one"), changed]
    evaluate([converted(), plain()], tasks, Setting(), tmp_path, batch=BATCH)


def test_other_data_of_a_later_task_is_noticed_before_anything_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered: list[int] = []
    answer = Letters.answer

    def counted(self: Letters, model: Any, examples: Any, setting: Setting) -> Any:
        answered.append(len(examples))
        return answer(self, model, examples, setting)

    monkeypatch.setattr(Letters, "answer", counted)
    with pytest.raises(AllMemError, match=r"letters__two\.jsonl was begun with fingerprint"):
        changed_later(tmp_path, Reworded("letters/two", 7))
    # Of the run itself, and nothing after it.
    assert sum(answered) == 2 * (13 + 7)


def test_what_is_slow_to_make_is_noticed_when_its_turn_comes(tmp_path: Path) -> None:
    made: list[str] = []

    class Slow(Reworded):
        slow_to_make = True

        def examples(self, setting: Setting, model: EvaluatedModel) -> Iterable[Example]:
            for example in super().examples(setting, model):
                made.append(example.id)
                yield example

    with pytest.raises(AllMemError, match=r"letters__two\.jsonl was begun with fingerprint"):
        changed_later(tmp_path, Slow("letters/two", 7))
    # One to see that there are any, and all of them once.
    assert len(made) == 1 + 7
    assert files(tmp_path)["converted/letters__one.jsonl"].count(b"\n") == 1 + 13


def test_which_model_was_asked_what_is_kept_of_all_commands(tmp_path: Path) -> None:
    one, two = Letters("letters/one", 1), Letters("letters/two", 1)
    evaluate([plain()], [one, two], Setting(), tmp_path, command="first")
    asked = {"plain": ["letters/one", "letters/two"]}
    assert Run(tmp_path).asked == asked
    before = (tmp_path / "run.json").read_bytes()
    # Folders of before: what the only command asked is known, of several what was begun.
    about = json.loads(before)
    del about["asked"]
    (tmp_path / "run.json").write_text(json.dumps(about))
    (tmp_path / "plain" / "letters__two.jsonl").unlink()
    assert Run(tmp_path).asked == asked
    (tmp_path / "run.json").write_text(json.dumps({**about, "commands": ["first", "second"]}))
    assert Run(tmp_path).asked == {"plain": ["letters/one"]}
    (tmp_path / "run.json").write_bytes(before)
    evaluate([converted()], [one], Setting(), tmp_path, command="second")
    assert Run(tmp_path).asked == {**asked, "converted": ["letters/one"]}


def test_a_fingerprint_is_that_of_all_that_is_asked() -> None:
    request = Request("Who?", 5)

    def of(ask: Any) -> str:
        return fingerprint([Example("1", ask)])

    assert of(request) == of(Request("Who?", 5))
    assert len({of(request), of(Request("What?", 5)), of(Request("Who?", 6))}) == 3
    # A text is a text, however it is made.
    assert of(request) == of(Request(FilledTemplate("{who}?", {"who": "Who"}), 5))
    # How much a model can read is no part of the question.
    assert of(request) == of(Request("Who?", 5, longest=100))
    assert of([("generate", "Who?", {"until": ["."]})]) != of([("generate", "Who?", {})])
    # A tensor is worked out from the rest; its text would leave most of it out.
    assert of((request, torch.zeros(2000))) == of((request, torch.ones(2000)))
    assert of((request, torch.zeros(2))) != of((Request("What?", 5), torch.zeros(2)))


def test_two_processes_do_not_write_one_run(tmp_path: Path) -> None:
    task = Letters(number=1)
    with (
        locked(tmp_path),
        pytest.raises(AllMemError, match="another process is writing the run"),
    ):
        evaluate([plain()], [task], Setting(), tmp_path)
    assert not everything(tmp_path)
    evaluate([plain()], [task], Setting(), tmp_path)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json", ".jsonl"}


def test_versions_are_kept_and_a_change_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Letters(number=1)
    evaluate([plain()], [task], Setting(), tmp_path)
    first = Run(tmp_path).about["versions"]
    assert {"allmem", "python", "torch", "transformers", "tokenizers"} <= first.keys()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate([plain()], [task], Setting(), tmp_path)
    monkeypatch.setattr(runner, "deciding_versions", lambda: {**first, "torch": "1.0"})
    with pytest.warns(UserWarning, match=r"other versions \(torch = .*now it is '1.0'\)"):
        evaluate([plain()], [task], Setting(), tmp_path)
    about = Run(tmp_path).about
    assert about["versions"]["torch"] == "1.0"
    assert about["earlier_versions"] == [first]


class Losses(Letters):
    """Measures something else."""

    scale = 1.0
    higher_is_better = False


def test_what_is_unlike_is_not_averaged(tmp_path: Path) -> None:
    tasks = [Letters(number=2), Losses("letters/losses", 2)]
    groups = {"both": [task.name for task in tasks]}
    evaluate([plain()], tasks, Setting(), tmp_path, groups=groups)
    scores = run_scores(tmp_path, {task.name: task for task in tasks})
    assert not scores.groups
    assert scores.notes == ["plain has no average of both: their scores are not of one kind"]


def test_other_examples_are_not_compared(tmp_path: Path) -> None:
    evaluate([plain()], [Letters(number=2)], Setting(), tmp_path)
    other = converted()
    evaluate([other], [Reworded(number=2)], Setting(), tmp_path)
    scores = run_scores(tmp_path, {"letters/plain": Letters()})
    assert not scores.differences
    assert "were asked different examples of letters/plain" in scores.notes[0]


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line[:20] + "\n",
        lambda line: line.replace('"cell"', '"cells"'),
        lambda line: "[]\n",
    ],
    ids=["torn", "no-cell", "no-object"],
)
def test_a_damaged_line_is_named(change: Callable[[str], str], tmp_path: Path) -> None:
    run(tmp_path)
    path = tmp_path / "plain" / "letters__one.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:4], change(lines[4]), *lines[5:]]))
    for use in (lambda: run(tmp_path), lambda: run_scores(tmp_path, TASKS)):
        with pytest.raises(AllMemError, match=r"plain/letters__one.jsonl, line 5 is damaged"):
            use()
    path.write_text("".join([*lines[:4], lines[5], lines[4], *lines[6:]]))
    with pytest.raises(AllMemError, match="line 5 is not the row that belongs there"):
        run(tmp_path)


def test_a_full_disk_costs_one_batch(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(now: RunProgress) -> None:
        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        if now.done:
            monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(AllMemError, match=r"No space left on device.*the same command goes on"):
        run(tmp_path, on_progress=fill)
    monkeypatch.undo()
    run(tmp_path)
    assert files(tmp_path) == files(whole)


def test_bad_rows_are_an_error_or_told(tmp_path: Path) -> None:
    tasks = [Letters("letters/one", bad=2)]
    with pytest.raises(AllMemError, match=r"line 1: no text; correct it, or .*--skip-bad-rows"):
        evaluate([plain()], tasks, Setting(), tmp_path)
    reports: list[RunProgress] = []
    setting = Setting(skip_bad_rows=True)
    evaluate([plain()], tasks, setting, tmp_path, on_progress=reports.append)
    assert reports[-1].bad_rows == 2
    scores = run_scores(tmp_path, TASKS).tasks["plain", "letters/one"]
    assert len(scores.bad_rows) == 2
    assert scores.bad_rows[1] == "letters/one.jsonl, line 2: no text"
    assert scores.overall.n == 13


class Answerer(EvaluatedModel):
    """A model that only answers."""

    label = "server"

    def identity(self) -> dict[str, Any]:
        return {}

    def complete(self, *rest: Any) -> Any:
        raise AssertionError("asked")


def test_what_cannot_be_asked_is_known_before(tmp_path: Path) -> None:
    task = Letters()
    task.needs = ("session",)
    with pytest.raises(AllMemError, match=r"letters/plain cannot be run: .* more .*session"):
        evaluate([Answerer()], [task], Setting(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


class ForSome(Letters):
    """For models that have a window."""

    def refuses(self, model: EvaluatedModel) -> str | None:
        return None if model.sees else "it sees everything"


def test_a_task_is_left_out_for_models_that_it_does_not_apply_to(tmp_path: Path) -> None:
    task = ForSome("letters/some", number=2)
    with pytest.warns(UserWarning, match="letters/some is left out for plain: it sees everything"):
        evaluate([converted(), plain()], [Letters(number=2), task], Setting(), tmp_path)
    scores = run_scores(tmp_path, {task.name: task for task in (Letters(), task)})
    assert ("converted", "letters/some") in scores.tasks
    assert ("plain", "letters/some") not in scores.tasks
    assert Run(tmp_path).left_out == {"plain": {"letters/some": "it sees everything"}}
    with pytest.raises(AllMemError, match="letters/some cannot be run: it sees everything"):
        evaluate([plain()], [task], Setting(), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_task_that_applies_to_no_model_does_not_end_a_run_of_others(tmp_path: Path) -> None:
    tasks = [Letters("letters/all", number=2), ForSome("letters/some", number=2)]
    with pytest.warns(UserWarning, match="letters/some is left out for plain: it sees everything"):
        run = evaluate([plain()], tasks, Setting(), tmp_path)
    assert run.asked == {"plain": ["letters/all"]}
    scores = run_scores(tmp_path, {task.name: task for task in tasks})
    assert list(scores.tasks) == [("plain", "letters/all")]


def test_what_is_left_out_stays_told_and_groups_are_those_of_all_commands(tmp_path: Path) -> None:
    named = ["infinitebench/longbook_qa_eng", "infinitebench/longbook_qa_chn"]
    for name in named:
        with pytest.warns(UserWarning, match=f"{name} is left out for plain"):
            evaluate([converted(), plain()], [ForSome(name, number=1)], Setting(), tmp_path)
    run = Run(tmp_path)
    assert run.left_out == {"plain": dict.fromkeys(named, "it sees everything")}
    assert set(run.groups["infinitebench-paper"]) == set(named)


class NoData(Letters):
    """Its file is missing."""

    def examples(self, setting: Setting, model: EvaluatedModel) -> Iterable[Example]:
        raise AllMemError("there is no letters.jsonl")


def test_data_that_is_missing_is_known_before(tmp_path: Path) -> None:
    with pytest.raises(AllMemError, match=r"there is no letters\.jsonl"):
        evaluate([plain()], [Letters(), NoData("letters/none")], Setting(), tmp_path / "run")
    with pytest.raises(AllMemError, match="letters/empty has no examples"):
        evaluate([plain()], [Letters("letters/empty", number=0)], Setting(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_refusals(whole: Path, tmp_path: Path) -> None:
    letters = Letters("letters/one")
    with pytest.raises(AllMemError, match="two models are called 'plain'"):
        evaluate([plain(), plain()], [letters], Setting(), tmp_path)
    with pytest.raises(AllMemError, match="two tasks are called"):
        evaluate([plain()], [letters, letters], Setting(), tmp_path)
    with pytest.raises(AllMemError, match="nothing to evaluate"):
        evaluate([plain()], [], Setting(), tmp_path)
    with pytest.raises(AllMemError, match="baseline = 'x'"):
        evaluate([plain()], [letters], Setting(), tmp_path, baseline="x")
    with pytest.raises(AllMemError, match="batch = 0"):
        evaluate([plain()], [letters], Setting(), tmp_path, batch=0)
    with pytest.raises(AllMemError, match=r"is no run: there is no run\.json"):
        Run(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"kind": "notes", "format": 1}))
    with pytest.raises(AllMemError, match="'notes'"):
        Run(tmp_path)
    with pytest.raises(AllMemError, match="did you mean 'plain'"):
        Run(whole).identity("plane")
