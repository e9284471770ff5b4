"""`allmem serve` and `allmem collect` with vLLM, as a user runs them: processes of their own."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

pytest.importorskip("vllm")

from allmem.folder import save_folder
from allmem.opening import OpenedModel
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


def allmem(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "allmem", *arguments]


async def completions(url: str, prompts: Sequence[list[int]]) -> list[str]:
    """All asked at once."""

    async def ask(client: httpx.AsyncClient, prompt: list[int]) -> str:
        body = {"prompt": prompt, "max_tokens": NEW, "temperature": 0, "ignore_eos": True}
        response = await client.post("/completions", json={"model": "m", **body})
        assert response.status_code == 200, response.text
        return response.json()["choices"][0]["text"]

    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client:
        return await asyncio.gather(*(ask(client, prompt) for prompt in prompts))


def test_serve_answers_as_generate_and_ends_in_good_order(
    student: OpenedModel, folder: str
) -> None:
    options = ["--engine", "vllm", "--port", "0", "--name", "m", "--slots", "3"]
    served = subprocess.Popen(allmem("serve", folder, *options), stdout=subprocess.PIPE, text=True)
    try:
        assert served.stdout is not None
        addresses = (re.search(r"http://\S+/v1", line) for line in served.stdout)
        url = next(found[0] for found in addresses if found)
        found = asyncio.run(completions(url, PROMPTS))
        served.send_signal(signal.SIGTERM)
        assert served.wait(PATIENCE) == 0
    finally:
        served.kill()
    for prompt, text in zip(PROMPTS, found, strict=True):
        ids = torch.tensor([prompt])
        whole = student.model.generate(ids, max_new_tokens=NEW, do_sample=False, eos_token_id=None)
        assert text == student.tokenizer.decode(whole[0, len(prompt) :], skip_special_tokens=True)


def test_collect_collects_what_generate_would(folder: str, tmp_path: Path) -> None:
    def collected(engine: str) -> list[dict[str, Any]]:
        path = tmp_path / f"{engine}.jsonl"
        files = ["--prompts", write_prompts(tmp_path), "--output", str(path)]
        how = ["--temperature", "0", "--max-new-tokens", str(NEW), "--engine", engine]
        subprocess.run(allmem("collect", folder, *files, *how), check=True)
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    (header, *theirs), (_, *ours) = collected("vllm"), collected("generate")
    assert header["engine"] == "vllm"
    key = "number"
    assert sorted(theirs, key=lambda row: row[key]) == sorted(ours, key=lambda row: row[key])
