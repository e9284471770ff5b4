"""A tiny random model with a tiny tokenizer, as folders on disk, and a way to run commands on them.

All slow weights of the converted model are drawn at random, alpha included: an untrained memory
adds nothing, and what is wrong with it would not show.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging
from typer.testing import CliRunner

import allmem
from allmem.cli.main import app

W, S, C = 16, 2, 8
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STORY = (
    "The maid wore an iron ring, and Walter sailed over the grey sea. Who saw the lady go by? " * 4
)


@pytest.fixture(autouse=True)
def _libraries_as_they_were() -> Iterator[None]:
    """Commands silence the libraries underneath for the whole process."""
    before, verbosity = dict(os.environ), transformers_logging.get_verbosity()
    yield
    os.environ.clear()
    os.environ.update(before)
    transformers_logging.set_verbosity(verbosity)
    transformers_logging.enable_progress_bar()
    logging.captureWarnings(False)


def make_tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """Byte-level BPE: every text has tokens, and a character may need several."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|end|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([STORY], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|end|>"
    )
    fast.chat_template = template
    return fast


def make_base(vocabulary: int, seed: int = 0) -> Any:
    """A model so random that its logits are far apart."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    return AutoModelForCausalLM.from_config(config).eval()


def draw_memory(model: allmem.AllMemForCausalLM) -> None:
    """Random slow weights around their starting values."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.memory_parameters().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base`` and ``converted``, both with a tokenizer; ``plain`` has no chat template; and
    ``adapter.safetensors`` with the memories of ``converted``."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = make_tokenizer()
    base = make_base(len(tokenizer))
    for name, template in (("base", TEMPLATE), ("plain", None)):
        base.save_pretrained(root / name)
        make_tokenizer(template).save_pretrained(root / name)
    converted = allmem.convert(base, window=W, sinks=S, chunk=C)
    draw_memory(converted)
    converted.save_pretrained(root / "converted")
    tokenizer.save_pretrained(root / "converted")
    allmem.save_adapter(converted, root / "adapter.safetensors")
    (root / "story.txt").write_text(STORY, encoding="utf-8")
    return root


@pytest.fixture
def base(folders: Path) -> str:
    return str(folders / "base")


@pytest.fixture
def converted(folders: Path) -> str:
    return str(folders / "converted")


@pytest.fixture
def adapter(folders: Path) -> str:
    return str(folders / "adapter.safetensors")


@pytest.fixture
def story(folders: Path) -> str:
    return str(folders / "story.txt")


@pytest.fixture
def run() -> Callable[..., Any]:
    """Run a command; its result has exit_code, stdout and stderr."""

    def invoke(*args: str, stdin: str | bytes = "", code: int = 0) -> Any:
        result = CliRunner().invoke(app, list(args), input=stdin)
        assert result.exit_code == code, (result.output, result.stderr, result.exception)
        return result

    return invoke


@pytest.fixture
def fails(run: Callable[..., Any]) -> Callable[..., str]:
    """Run a command that must fail on bad input: in one line on stderr, and nothing on stdout."""

    def invoke(*args: str, stdin: str | bytes = "") -> str:
        result = run(*args, stdin=stdin, code=2)
        lines = result.stderr.strip().splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("error: ")
        assert result.stdout == ""
        return lines[0]

    return invoke
