"""The examples of clients run, against a server that writes one text."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import make_tokenizer
from tests.serving.server.fake import NAME, TEXT, FakeEngine, Running, running

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(FakeEngine(make_tokenizer())) as server:
        yield server


def test_openai_s_client(server: Running, capsys: pytest.CaptureFixture[str]) -> None:
    example = pytest.importorskip("examples.serve_openai", exc_type=ImportError)
    example.main(["Who?", "--url", server.url + "/v1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == lines[2] == TEXT
    assert lines[3:] == [f"0: {TEXT}", f"1: {TEXT}"]


def test_langchain(server: Running, capsys: pytest.CaptureFixture[str]) -> None:
    example = pytest.importorskip("examples.serve_langchain", exc_type=ImportError)
    example.main(["--url", server.url + "/v1", "--model", NAME])
    assert capsys.readouterr().out == f"{TEXT}\n" * 2


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl(server: Running) -> None:
    script = str(ROOT / "examples" / "serve_curl.sh")
    done = subprocess.run(
        ["sh", script, server.url], capture_output=True, text=True, check=True, timeout=30
    )
    assert "data: [DONE]" in done.stdout
    assert done.stdout.count(TEXT) == 2
    assert "allmem_generated_tokens_total " in done.stdout
