"""`allmem serve` and `allmem collect` with vLLM, as a user runs them: processes of their own."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from allmem.folder import save_folder
from allmem.opening import OpenedModel
from benchmarks.serving import Asked, ask_all, server
from tests.distill.chats import make_student, write_prompts
from tests.serving.vllm.serving import calmed, prompts_of

pytestmark = pytest.mark.vllm

NEW = 12
PATIENCE = 120.0
PROMPTS = prompts_of(1, 3, 11, 24, 40, 61, 100, 120)


@pytest.fixture(scope="module")
def student() -> OpenedModel:
    made = make_student(dtype=torch.float32)
    calmed(made.model)
    return made


@pytest.fixture(scope="module")
def folder(student: OpenedModel, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("student") / "model"
    return str(save_folder(student.model, student.tokenizer, path))


@torch.no_grad()
def as_generate(student: OpenedModel, prompt: list[int]) -> Asked:
    """A prompt, and what ``generate`` answers to it alone."""
    ids = torch.tensor([prompt])
    whole = student.model.generate(ids, max_new_tokens=NEW, do_sample=False, eos_token_id=None)
    said = student.tokenizer.decode(whole[0, len(prompt) :], skip_special_tokens=True)
    return Asked(prompt, said)


def test_serve_answers_as_generate_and_ends_in_good_order(
    student: OpenedModel, folder: str
) -> None:
    asked = [as_generate(student, prompt) for prompt in PROMPTS]
    with server(folder, "vllm", "--slots", "3") as (url, process):
        answers, _ = asyncio.run(ask_all(url, asked, len(asked), NEW))
        process.terminate()
        assert process.wait(PATIENCE) == 0
    assert [answer.right for answer in answers] == [True] * len(asked)


def test_collect_collects_what_generate_would(folder: str, tmp_path: Path) -> None:
    def collected(engine: str) -> list[dict[str, Any]]:
        path = tmp_path / f"{engine}.jsonl"
        files = ["--prompts", write_prompts(tmp_path), "--output", str(path)]
        how = ["--temperature", "0", "--max-new-tokens", str(NEW), "--engine", engine]
        subprocess.run(
            [sys.executable, "-m", "allmem", "collect", folder, *files, *how], check=True
        )
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    (header, *theirs), (_, *ours) = collected("vllm"), collected("generate")
    assert header["engine"] == "vllm"
    by_number = itemgetter("number")
    assert sorted(theirs, key=by_number) == sorted(ours, key=by_number)
