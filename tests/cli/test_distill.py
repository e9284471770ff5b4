"""``allmem distill`` and ``allmem train``: whole runs of a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from allmem.cli.training import describe
from allmem.distill.progress import Step
from tests.cli.conftest import STORY, C, S, W

Run = Callable[..., Any]


@pytest.fixture
def recipe(base: str, tmp_path: Path) -> Path:
    book = tmp_path / "book.txt"
    book.write_text(STORY * 6)
    values = {
        "model": base,
        "output": str(tmp_path / "run"),
        "conversion": {"window": W, "sinks": S, "chunk": C},
        "data": {"texts": [str(book)], "length": 48, "evaluated": 2},
        "training": {"steps": 4, "batch": 2, "checkpoint_steps": 2},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_recipe_becomes_an_adapter_that_answers(
    run: Run, recipe: Path, base: str, story: str, tmp_path: Path
) -> None:
    done = run("distill", str(recipe))
    folder = tmp_path / "run"
    assert "window and memory" in done.stdout
    assert str(folder / "adapter.safetensors") in done.stdout.replace("\n", "")
    assert "kl" in done.stderr
    results = json.loads((folder / "results.json").read_text())
    assert results["after"]["unwritten"]["kl"] > 0
    again = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert again["training"]["steps"] == 4
    adapter = str(folder / "adapter.safetensors")
    asked = run("ask", base, "Who?", "-d", story, "--adapter", adapter, "-n", "3")
    assert asked.stdout


def test_a_run_is_not_started_over_and_goes_on(run: Run, recipe: Path, tmp_path: Path) -> None:
    run("distill", str(recipe))
    assert "--resume" in run("distill", str(recipe), code=2).stderr
    before = (tmp_path / "run" / "adapter.safetensors").read_bytes()
    run("distill", str(recipe), "--resume")
    assert (tmp_path / "run" / "adapter.safetensors").read_bytes() == before
    changed = run("distill", str(recipe), "training.lr=1e-2", "--resume", code=2)
    assert "lr = 0.001, now it is 0.01" in changed.stderr.replace("\n", " ")


def test_a_recipe_is_shown_with_every_key(run: Run, recipe: Path) -> None:
    shown = yaml.safe_load(run("distill", str(recipe), "training.seed=7", "--show").stdout)
    assert shown["training"]["seed"] == 7
    assert shown["training"]["objective"]["divergence"] == "forward_kl"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["training.stepz=3"], "unknown key 'stepz'"),
        (["data.texts=[nowhere.txt]"], "nowhere.txt"),
        (["data.length=16"], "does not reach beyond"),
        (["data.length=100000"], "fewer than one sequence"),
        (["model=./nowhere"], "no folder or file ./nowhere"),
        (["training.report_to=[nothing]"], "nothing"),
        (["teacher.kind=stored"], "allmem data teach"),
    ],
)
def test_bad_input_is_told_in_a_line(
    run: Run, recipe: Path, settings: list[str], named: str
) -> None:
    error = run("distill", str(recipe), *settings, code=2).stderr.replace("\n", " ")
    assert named in error
    assert "defect" not in error


def test_training_on_a_text_needs_no_recipe(
    run: Run, base: str, recipe: Path, tmp_path: Path
) -> None:
    book, out = str(tmp_path / "book.txt"), str(tmp_path / "trained")
    options = ["-W", str(W), "-S", str(S), "-C", str(C), "--length", "48", "--batch", "2"]
    done = run("train", base, "--text", book, "-o", out, "--tokens", "400", *options)
    assert "window and memory" in done.stdout
    assert yaml.safe_load((tmp_path / "trained" / "recipe.yaml").read_text())["model"] == base


def test_a_step_in_a_line() -> None:
    step = Step(12, "kl", 0.132, 1.0, 0.0123, 0.0046, 2e-4, 12_288, 320.4, 0.5, 80.2)
    assert describe(step) == (
        "kl  step 12  12,288 tokens  KL 0.1320  |alpha| 0.0123  eta 0.0046  320 tokens/s  1:20 left"
    )
