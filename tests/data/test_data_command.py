"""``allmem data`` builds, goes on, and shows what was built."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import LlamaConfig
from typer.testing import CliRunner, Result

from allmem.cli.main import app
from tests.data.folders import TOKENIZER, chats, write_rows


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """Commands silence the libraries underneath for the whole process."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    TOKENIZER.save_pretrained(tmp_path / "tokenizer")
    LlamaConfig().save_pretrained(tmp_path / "tokenizer")
    rows = write_rows(tmp_path / "a.jsonl", [*chats(20), {"prompt": "x", "response": ""}])
    path = tmp_path / "recipe.yaml"
    path.write_text(f"model: {tmp_path / 'tokenizer'}\nsources:\n  - path: {rows}\n    name: a\n")
    return path


def run(*args: object) -> Result:
    return CliRunner().invoke(app, ["data", *map(str, args)])


def test_build_prints_what_was_left_out_and_inspect_marks_what_is_learned(
    recipe: Path, tmp_path: Path
) -> None:
    built = run("build", recipe, "-o", tmp_path / "out")
    assert built.exit_code == 0, built.output
    assert "no_response" in built.stdout
    assert "95.2%" in built.stdout
    again = run("build", recipe, "-o", tmp_path / "out")
    assert again.stdout == built.stdout
    shown = run("inspect", tmp_path / "out", "--sample", 2)
    assert shown.exit_code == 0, shown.output
    assert "<|im_start|>assistant\n<think>\n\n</think>\n\n[[Answer" in shown.stdout
    assert "<|im_end|>]]" in shown.stdout


def test_options_are_enough(recipe: Path, tmp_path: Path) -> None:
    rows, model = tmp_path / "a.jsonl", tmp_path / "tokenizer"
    built = run("build", "--model", model, "--source", rows, "-o", tmp_path / "out")
    assert built.exit_code == 0, built.output


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["build", "{recipe}"], "--output DIR"),
        (["build", "none.yaml", "-o", "{out}"], "there is no file none.yaml"),
        (["build", "-o", "{out}"], "model, sources must be given"),
        (["build", "{recipe}", "-o", "{out}", "--model", "none/none/none"], "there is no folder"),
        (["inspect"], "name the data folder"),
        (["inspect", "{out}"], "no data folder"),
    ],
)
def test_wrong_use_is_one_line(recipe: Path, tmp_path: Path, args: list[str], says: str) -> None:
    names = {"recipe": recipe, "out": tmp_path / "out"}
    done = run(*(arg.format(**names) for arg in args))
    assert done.exit_code == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_sample_that_is_not_there_is_one_line(recipe: Path, tmp_path: Path) -> None:
    run("build", recipe, "-o", tmp_path / "out")
    done = run("inspect", tmp_path / "out", "--sample", 99)
    assert "holds samples 0 to 19" in done.stderr
