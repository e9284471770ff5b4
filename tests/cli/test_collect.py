"""``allmem collect``: a file of responses, gone on with, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from allmem.distill.responses import response_rows
from tests.cli.conftest import make_tokenizer

NEW = 12


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "prompts.jsonl"
    questions = ["Who saw the lady?", "What did the maid wear?", "Why?"]
    path.write_text("".join(json.dumps({"prompt": q}) + "\n" for q in questions))
    return str(path)


def options(model: str, prompts: str, output: Path, *more: str) -> list[str]:
    own = ["--prompts", prompts, "-o", str(output), "-n", str(NEW), "--batch", "2"]
    return ["collect", model, *own, "--device", "cpu", *more]


def test_a_cut_file_goes_on_by_the_same_command(
    run: Any, converted: str, prompts: str, tmp_path: Path
) -> None:
    output = tmp_path / "responses.jsonl"
    said = run(*options(converted, prompts, output))
    assert f"{output}: 3 responses, " in said.stdout
    whole = output.read_bytes()
    header, *lines = map(json.loads, whole.splitlines())
    assert header["source"] == converted
    assert header["sampling"]["temperature"] == 1
    assert len(lines) == 3
    assert response_rows(output, 100, make_tokenizer())
    output.write_bytes(whole[:-20])
    assert run(*options(converted, prompts, output)).stdout == said.stdout
    assert output.read_bytes() == whole


def test_base_and_adapter_answer_as_the_converted_model(
    run: Any, base: str, adapter: str, converted: str, prompts: str, tmp_path: Path
) -> None:
    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    run(*options(converted, prompts, one))
    run(*options(base, prompts, other, "--adapter", adapter))
    assert one.read_bytes().splitlines()[1:] == other.read_bytes().splitlines()[1:]
    # Their weights are the same too.
    run(*options(base, prompts, one, "--adapter", adapter))


def test_a_limit_and_skipped_prompts_are_told(
    run: Any, converted: str, prompts: str, tmp_path: Path
) -> None:
    output = tmp_path / "responses.jsonl"
    said = run(*options(converted, prompts, output, "--limit", "1"))
    assert "1 responses" in said.stdout
    longest = len(json.loads(output.read_text().splitlines()[1])["prompt_ids"])
    said = run(*options(converted, prompts, tmp_path / "b", "--max-prompt-tokens", str(longest)))
    assert "skipped: too_long 1" in said.stderr


def test_what_cannot_be_is_one_line(
    fails: Any, run: Any, converted: str, folders: Path, prompts: str, tmp_path: Path
) -> None:
    output = tmp_path / "responses.jsonl"
    run(*options(converted, prompts, output, "--seed", "1"))
    told = fails(*options(converted, prompts, output, "--seed", "2"))
    assert "sampling.seed = 1, now it is 2" in told
    assert "there is no file" in fails(*options(converted, "absent.jsonl", output))
    plain = str(folders / "plain")
    assert "no chat template" in fails(*options(plain, prompts, tmp_path / "b"))
    assert "top_p = 2" in fails(*options(converted, prompts, tmp_path / "b", "--top-p", "2"))
