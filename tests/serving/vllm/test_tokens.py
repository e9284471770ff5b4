"""vLLM's tokens are those of ``generate``, whatever its scheduler does.

Prompts are cut into pieces that no chunk divides, more prompts wait than run, sequences of every
length are read in one step.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from allmem.config import WindowConfig
from allmem.models import compiled
from allmem.models.adapter import save_adapter
from allmem.models.decoding import VARIABLE
from allmem.serving.vllm import step
from tests.models.tiny import BASES, C
from tests.serving.vllm.serving import (
    CACHED,
    MIXED,
    answers,
    assert_as_generate,
    calm_model,
    metric,
    prompts_of,
    saved_base,
    serving,
)

pytestmark = pytest.mark.vllm


def compare(folder: Path, name: str = "llama", close: float = 1e-4, **options: Any) -> None:
    model = calm_model(name, **options)
    model.save_pretrained(folder)
    with serving(folder) as llm:
        assert_as_generate(model, MIXED, answers(llm, MIXED), close)


@pytest.mark.parametrize("name", BASES)
def test_every_architecture(name: str, tmp_path: Path) -> None:
    compare(tmp_path, name)


PATTERNS: dict[str, dict[str, Any]] = {
    "window": {"mixers": "window"},
    "low rank": {"memory": {"projections": "lowrank", "rank": 4}},
    "shared, no convolution": {"memory": {"projections": "shared", "rank": 3, "conv": 0}},
    "linear, no momentum": {"memory": {"network": "linear", "momentum": False}},
    "titans in the context": {
        "mixers": "titans",
        "mixer_options": {"titans": {"mini_batch": 4, "fusion": "context"}},
    },
    "evicted": {"memory": {"write_scope": "evicted"}},
    "recurrences": {"mixers": "mamba2,gated_deltanet"},
    "gla": {"mixers": "gla"},
    "titans": {"mixers": "titans", "mixer_options": {"titans": {"mini_batch": 4}}},
    "ttt": {"mixers": "ttt_linear", "mixer_options": {"ttt_linear": {"mini_batch": 4}}},
    "infini": {"mixers": "infini"},
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_kind_of_state(pattern: str, tmp_path: Path) -> None:
    compare(tmp_path, **PATTERNS[pattern])


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_sequences_that_are_read_together(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU."""
    monkeypatch.setattr(step, "reads_in_place", lambda device: False)
    compare(tmp_path, name)


def test_compiled_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the code that inductor would write."""
    monkeypatch.setattr(compiled, "_compiled", partial(compiled._compiled, backend="eager"))
    monkeypatch.setenv(VARIABLE, "compiled")
    used = []
    monkeypatch.setattr(
        step, "compiled_mix", lambda *args: used.append(1) or compiled.compiled_mix(*args)
    )
    compare(tmp_path, mixers="window,allmem")
    assert used


def test_another_window_and_chunk(tmp_path: Path) -> None:
    model = calm_model()
    model.save_pretrained(tmp_path)
    wishes = {"allmem_window": 20, "allmem_sinks": 2, "allmem_chunk": C + 3}
    with serving(tmp_path, hf_overrides=wishes) as llm:
        found = answers(llm, MIXED)
    assert_as_generate(model, MIXED, found, window=WindowConfig(20, 2), chunk=C + 3)


def test_bfloat16(tmp_path: Path) -> None:
    """The base in half precision, the memory's rates and states in fp32."""
    calm_model().save_pretrained(tmp_path)
    model = type(calm_model()).from_pretrained(tmp_path, dtype=torch.bfloat16)
    with serving(tmp_path, dtype="bfloat16") as llm:
        served = llm.collective_rpc(lambda worker: worker.get_model().model)[0]
        kept = {name: p.dtype for name, p in model.named_parameters()}
        assert {name: p.dtype for name, p in served.named_parameters()} == kept
        assert_as_generate(model, MIXED, answers(llm, MIXED), close=0.1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("how", ["folder", "preempted, with a prefix cache", "base and adapter"])
def test_fifty_prompts_of_up_to_four_thousand_tokens(how: str, tmp_path: Path) -> None:
    model = calm_model("qwen3")
    folder, options = tmp_path / "model", dict[str, Any]()
    if how == "base and adapter":
        save_adapter(model, tmp_path / "memory")
        folder = saved_base(tmp_path, "qwen3")
        wishes = {"allmem_adapter": str(tmp_path / "memory")}
        options = {"config_format": "allmem", "hf_overrides": wishes}
    else:
        model.save_pretrained(folder)
    if how == "preempted, with a prefix cache":
        # Every sequence needs another slot now and then, and there are too few for eight.
        options = {**CACHED, "block_size": 32, "num_gpu_blocks_override": 12}
    generator = torch.Generator().manual_seed(0)
    lengths = (4000 ** torch.rand(48, generator=generator)).long().tolist()
    prompts = prompts_of(1, 4000, *lengths)
    sizes = {"max_num_seqs": 8, "max_num_batched_tokens": 200, "max_model_len": 4096}
    with serving(folder, **sizes, **options) as llm:
        found = answers(llm, prompts, tokens=32)
        if "enable_prefix_caching" in options:
            assert metric(llm, "vllm:num_preemptions") > 0
    assert_as_generate(model, prompts, found)
