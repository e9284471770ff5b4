"""What vLLM is started with: folders, adapters, its own server; and what it is not started with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

pytest.importorskip("vllm")

from allmem.models.adapter import save_adapter
from allmem.models.decoding import VARIABLE
from allmem.models.modeling import AllMemForCausalLM
from allmem.serving import vllm as plugin
from tests.models.tiny import C, W, tiny_model
from tests.serving.vllm.serving import (
    MIXED,
    answers,
    assert_as_generate,
    calm_model,
    prompts_of,
    saved_base,
    serving,
)

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny_model("llama").save_pretrained(path)
    return path


# A base model and an adapter


@pytest.mark.parametrize("name", ["llama", "gemma3", "phi3", "qwen3-moe"])
def test_a_base_with_an_adapter(name: str, tmp_path: Path) -> None:
    model = calm_model(name)
    save_adapter(model, tmp_path / "memory")
    wishes = {"allmem_adapter": str(tmp_path / "memory")}
    base = saved_base(tmp_path, name)
    with serving(base, config_format="allmem", hf_overrides=wishes) as llm:
        assert_as_generate(model, MIXED, answers(llm, MIXED))


def test_an_adapter_of_another_base_is_refused_unless_it_is_meant(tmp_path: Path) -> None:
    save_adapter(calm_model("llama"), tmp_path / "memory")
    base = saved_base(tmp_path, "llama", seed=1)
    wishes: dict[str, Any] = {"allmem_adapter": str(tmp_path / "memory")}
    refused(base, "another base model", config_format="allmem", hf_overrides=wishes)
    wishes["allmem_other_base"] = True
    with serving(base, config_format="allmem", hf_overrides=wishes) as llm:
        assert len(answers(llm, MIXED[:1])[0].token_ids) == 12


def test_an_adapter_has_to_be_named_and_there(folder: Path, tmp_path: Path) -> None:
    base = saved_base(tmp_path, "llama")
    refused(base, "none is named", config_format="allmem")
    wishes = {"allmem_adapter": str(tmp_path / "nothing")}
    refused(base, "there is no file", config_format="allmem", hf_overrides=wishes)
    refused(folder, "is converted already", config_format="allmem", hf_overrides=wishes)


# Refusals


def refused(model: Path, why: str, **options: Any) -> None:
    with pytest.raises(ValueError, match=why), serving(model, **options):
        pass


@pytest.mark.parametrize(
    "options",
    [
        {"tensor_parallel_size": 2},
        {"pipeline_parallel_size": 2},
        {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}},
        {"enable_lora": True},
        {"load_format": "dummy"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_refused_at_the_start(folder: Path, options: dict[str, Any]) -> None:
    refused(folder, f"{next(iter(options))} = .* converted model", **options)


def test_a_state_that_grows_is_refused(tmp_path: Path) -> None:
    tiny_model("llama", mixers="full,allmem").save_pretrained(tmp_path)
    refused(tmp_path, r"layers \[0\] \(full\) have a state that grows")


def test_sizes_that_do_not_fit_are_refused(folder: Path) -> None:
    refused(folder, "chunk", hf_overrides={"allmem_chunk": W + 1})
    refused(folder, "window", hf_overrides={"allmem_window": C - 1})


def test_graphs_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "graph")
    refused(folder, "decoding = 'graph'")


def test_a_checkpoint_without_its_memories_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tiny_model("llama").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: t for name, t in weights.items() if "alpha" not in name}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    refused(tmp_path, r"2 missing keys, for example .*alpha")


# The plugin


def test_registering_again_changes_nothing() -> None:
    from vllm import ModelRegistry

    plugin.register()
    known = ModelRegistry.models[plugin.ARCHITECTURE]
    plugin.register()
    assert ModelRegistry.models[plugin.ARCHITECTURE] is known


def test_another_version_of_vllm_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vllm.__version__", "0.33.1")
    plugin.register.__wrapped__()
    assert "0.33.1" in caplog.text
    assert f"vllm=={plugin.SUPPORTED}" in caplog.text


def test_nothing_of_vllm_is_imported_before_it_registers() -> None:
    code = "import sys, allmem.serving.vllm; assert not {'vllm', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_request_may_be_longer_than_what_the_base_was_trained_for(
    folder: Path,
) -> None:
    model = AllMemForCausalLM.from_pretrained(folder)
    trained = model.config.text_config.max_position_embeddings
    with serving(folder, max_model_len=None) as llm:
        assert llm.llm_engine.vllm_config.model_config.max_model_len == trained
    long = prompts_of(2 * trained)
    with serving(folder, max_model_len=4 * trained) as llm:
        assert len(answers(llm, long)[0].token_ids) == 12


# vLLM's server


def tokenizer_in(folder: Path) -> None:
    """A word for every token of the tiny models."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({f"w{i}": i for i in range(61)}, unk_token="w0"))
    words.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w1", pad_token="w0")
    fast.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    fast.save_pretrained(folder)


@contextmanager
def server(folder: Path, port: int, log: Path) -> Iterator[httpx.Client]:
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    options = ["--dtype", "float32", "--max-num-seqs", "4", "--port", str(port)]
    options += ["--kv-cache-memory-bytes", str(64 << 20), "--served-model-name", "tiny"]
    # As it is run: the engine in a process of its own.
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, *options], stdout=out, stderr=subprocess.STDOUT, env=environment
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            wait_for(client, process, log)
            yield client
    finally:
        process.terminate()
        process.wait(60)


def wait_for(client: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(240):
        assert process.poll() is None, log.read_text()[-4000:]
        try:
            if client.get("/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(1)
    raise AssertionError(log.read_text()[-4000:])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_server(tmp_path: Path, unused_tcp_port: int) -> None:
    model = calm_model()
    model.save_pretrained(tmp_path)
    tokenizer_in(tmp_path)
    prompt = MIXED[7]
    with server(tmp_path, unused_tcp_port, tmp_path / "log") as client:
        body: dict[str, Any] = {"model": "tiny", "prompt": prompt, "temperature": 0}
        reply = client.post("/v1/completions", json={**body, "max_tokens": 12, "ignore_eos": True})
        told = reply.json()["choices"][0]["text"].split()
        words = " ".join(f"w{i}" for i in prompt)
        chat = {"model": "tiny", "messages": [{"role": "user", "content": words}], "max_tokens": 3}
        lines = client.post("/v1/chat/completions", json={**chat, "stream": True}).text.split("\n")
    ids = torch.tensor([prompt])
    expected = model.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=None)
    assert told == [f"w{i}" for i in expected[0, len(prompt) :].tolist()]
    assert json.loads(lines[0].removeprefix("data: "))["object"] == "chat.completion.chunk"


@pytest.fixture
def unused_tcp_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
