"""``allmem evaluate``: one command for several models, gone on with, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from allmem.evaluation import catalog
from tests.cli.conftest import C, S, W
from tests.evaluation.questions import TASKS


@pytest.fixture(autouse=True)
def _questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A suite that needs no data, in place of the others."""
    monkeypatch.setattr(catalog, "SUITES", {"questions": "tests.evaluation.questions"})


def options(model: str, output: Path, *more: str) -> list[str]:
    own = ["--tasks", "questions", "-o", str(output), "-n", "5", "--device", "cpu"]
    return ["evaluate", model, *own, *more]


def labels(output: Path) -> list[str]:
    return [model["label"] for model in json.loads((output / "run.json").read_text())["models"]]


def test_a_model_is_evaluated_and_the_run_gone_on_with(
    run: Any, converted: str, tmp_path: Path
) -> None:
    said = run(*options(converted, tmp_path))
    for name in (*TASKS, "questions", "converted"):
        assert name in said.stdout
    path = tmp_path / "converted" / "questions__who.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert run(*options(converted, tmp_path)).stdout == said.stdout
    assert path.read_bytes() == whole
    about = json.loads((tmp_path / "run.json").read_text())
    assert about["setting"]["max_new_tokens"] == 5
    assert about["groups"] == {"questions-all": list(TASKS)}


def test_an_unconverted_model_is_evaluated_as_it_is(run: Any, base: str, tmp_path: Path) -> None:
    run(*options(base, tmp_path / "plain"))
    identity = json.loads((tmp_path / "plain" / "run.json").read_text())["models"][0]["identity"]
    assert identity["kind"] == "plain"
    run(*options(base, tmp_path / "window", "--window", "16", "--chunk", "8"))
    identity = json.loads((tmp_path / "window" / "run.json").read_text())["models"][0]["identity"]
    assert (identity["kind"], identity["window"], identity["chunk"]) == ("converted", 16, 8)


def test_a_teacher_is_evaluated_beside_and_the_difference_shown(
    run: Any, base: str, converted: str, adapter: str, tmp_path: Path
) -> None:
    said = run(*options(converted, tmp_path / "a", "--teacher", base))
    assert labels(tmp_path / "a") == ["converted", "base"]
    assert "more than base" in said.stdout
    # A model that was converted just now knows its teacher.
    run(*options(base, tmp_path / "b", "--adapter", adapter, "--teacher", "base"))
    assert labels(tmp_path / "b") == ["base", "base (teacher)"]
    for task in TASKS:
        file = f"{task.replace('/', '__')}.jsonl"
        one, other = (
            (tmp_path / run / folder / file).read_text().splitlines()[1:]
            for run, folder in (("a", "converted"), ("b", "base"))
        )
        assert one == other


def test_a_teacher_is_also_evaluated_with_scaled_positions(
    run: Any, base: str, converted: str, tmp_path: Path
) -> None:
    more = ["--rope-scaling", "yarn:4", "--rope-scaling", "ntk:4"]
    run(*options(converted, tmp_path, "--teacher", base, *more))
    assert labels(tmp_path) == ["converted", "base", "base, yarn 4", "base, ntk 4"]
    plain, yarn, ntk = (
        model["identity"] for model in json.loads((tmp_path / "run.json").read_text())["models"][1:]
    )
    assert yarn == plain | {"RoPE scaling": "yarn 4", "reach": 4 * plain["reach"]}
    assert ntk["RoPE scaling"] == "ntk 4"


def test_scaled_positions_are_a_teacher_s(fails: Any, base: str, tmp_path: Path) -> None:
    said = fails(*options(base, tmp_path, "--rope-scaling", "yarn:4"))
    assert "--rope-scaling is for the teacher" in said
    assert "kind:factor" in fails(
        *options(base, tmp_path, "--teacher", base, "--rope-scaling", "yarn")
    )


def test_a_silent_memory_whose_window_covers_all_is_no_better_or_worse(
    run: Any, base: str, tmp_path: Path
) -> None:
    """Answer for answer, in one command."""
    run(*options(base, tmp_path, "--window", "100", "--teacher", "base"))
    rows = [
        [json.loads(line)["prediction"] for line in path.read_text().splitlines()[1:]]
        for path in sorted(tmp_path.glob("*/questions__who.jsonl"))
    ]
    assert len(rows) == 2
    assert rows[0] == rows[1]


def test_a_teacher_is_read_in_its_student_s_precision(
    run: Any, base: str, converted: str, tmp_path: Path
) -> None:
    rounded = tmp_path / "rounded"
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(rounded)
    AutoTokenizer.from_pretrained(base).save_pretrained(rounded)
    for number, more in enumerate(((), ("--dtype", "bfloat16"))):
        output = tmp_path / str(number)
        run(*options(converted, output, "--teacher", str(rounded), *more))
        models = json.loads((output / "run.json").read_text())["models"]
        assert [model["identity"]["dtype"] for model in models] == [
            ("float32", "bfloat16")[number]
        ] * 2


def test_tasks_and_groups_that_are_not_finished_say_so(
    run: Any, converted: str, tmp_path: Path
) -> None:
    run(*options(converted, tmp_path))
    path = tmp_path / "converted" / "questions__what.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]))
    said = run("evaluate", converted, "--tasks", "questions/who", *options("", tmp_path)[4:])
    assert "3 of 5" in said.stdout
    assert "8 of 10" in said.stdout


def test_a_server_is_not_given_what_only_models_here_understand(fails: Any, tmp_path: Path) -> None:
    server = ["evaluate", "name", "--tasks", "questions", "-o", str(tmp_path / "run")]
    server += ["--url", "http://localhost:9"]
    for given in (
        ["--teacher", "base"],
        ["--sizes", "16/2/8"],
        ["--readers", "window"],
        ["--adapter", "/nowhere"],
        ["--window", "77"],
        ["--set", "loss=dot"],
        ["--dtype", "float32"],
        ["--device", "cpu"],
    ):
        assert f"error: {given[0]}: with --url" in fails(*server, *given)
    assert "--teacher, --window: with" in fails(*server, "--window", "9", "--teacher", "base")
    assert "--tokenizer is for a server" in fails(
        "evaluate", "name", "--tasks", "questions", "-o", "run", "--tokenizer", "name"
    )


def test_one_checkpoint_over_readers_and_sizes(run: Any, converted: str, tmp_path: Path) -> None:
    grid = ["--readers", "memory,window,unwritten", "--sizes", f"{W}/{S}/{C}", "--sizes", "12/2/4"]
    run(*options(converted, tmp_path, *grid))
    assert labels(tmp_path) == [
        f"converted{reader}, {sizes}"
        for sizes in (f"{W}/{S}/{C}", "12/2/4")
        for reader in ("", ", window", ", unwritten")
    ]


def test_the_paper_samples_as_the_models_makers_recommend(
    run: Any, converted: str, tmp_path: Path
) -> None:
    paper = ("--protocol", "paper", "--top-k", "7", "--seed", "3")
    said = run(*options(converted, tmp_path, *paper))
    assert "converted recommend no way to sample" in " ".join(said.stderr.split())
    setting = json.loads((tmp_path / "run.json").read_text())["setting"]
    assert setting["protocol"] == "paper"
    assert setting["sampling"] == {"temperature": 1.0, "top_p": 1.0, "top_k": 7, "seed": 3}
    chosen = run(*options(converted, tmp_path / "chosen", *paper, "-t", "0.5"))
    assert "recommend" not in chosen.stderr


def test_a_model_that_thinks_is_sampled_otherwise(
    run: Any, converted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("allmem.reading.QWEN3", ("llama",))
    for name, more, top_p in (("plain", (), 0.8), ("thinking", ("--thinking",), 0.95)):
        run(*options(converted, tmp_path / name, "--protocol", "paper", *more))
        setting = json.loads((tmp_path / name / "run.json").read_text())["setting"]
        assert setting["sampling"]["top_p"] == top_p


def test_tasks_are_listed(run: Any) -> None:
    for command in (["evaluate", "--list"], ["evaluate", "--tasks", "list"]):
        said = run(*command).stdout
        assert "questions/who" in said
        assert "Asks who" in said
        assert "questions-all" in said


def test_refusals(fails: Any, base: str, converted: str, tmp_path: Path) -> None:
    out = ["-o", str(tmp_path / "run"), "--device", "cpu"]
    assert "did you mean 'questions/who'" in fails(
        "evaluate", converted, "--tasks", "questions/why", *out
    )
    assert "--output" in fails("evaluate", converted, "--tasks", "questions")
    assert "there is no model" in fails("evaluate", "--tasks", "questions", *out)
    assert "there is no such folder" in fails(*options(converted, tmp_path, "--data", "nowhere"))
    assert "not converted" in fails(*options(base, tmp_path, "--readers", "window"))
    assert "leave out the sizes" in fails(*options(base, tmp_path, "--sizes", "16/2/8"))
    assert "such as 512/16/256" in fails(*options(converted, tmp_path, "--sizes", "16"))
    assert "smaller than chunk" in fails(*options(converted, tmp_path, "--sizes", "16/2/32"))
    assert "did you mean 'memory'" in fails(*options(converted, tmp_path, "--readers", "memroy"))
    assert "converted itself" in fails(*options(base, tmp_path, "--teacher", converted))
    assert "lengths" in fails(*options(converted, tmp_path, "--lengths", "4q"))
    assert "temperature = -1" in fails(*options(converted, tmp_path, "-t", "-1"))
    assert not (tmp_path / "run").exists()
