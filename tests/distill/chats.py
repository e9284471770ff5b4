"""A tiny random student with a tokenizer that can chat, and prompts for it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import allmem
from allmem.opening import OpenedModel
from tests.data.tokenizers import small_tokenizer
from tests.distill.tiny import C, S, W, randomise

QUESTIONS = [
    "Who said so?",
    "The river rises in the north, and what the old man said about it was true. Why?",
    "北方的河流每年春天都会涨水，老人说的话是真的。他为什么这样说？",
    "And?",
    "What was it that the old man said about the river, and was it true?",
    "Is it in the north?",
    "user",
]

ENDS = 40
"""How many tokens end a response."""


def make_student(
    seed: int = 0, dtype: torch.dtype = torch.float64, name: str = "qwen3", random: bool = True
) -> OpenedModel:
    """As ``tests.distill.tiny.make_model``, with the words of a tokenizer."""
    tokenizer = small_tokenizer(name)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=None,
    )
    base = LlamaForCausalLM(config).to(dtype).eval()
    model = allmem.convert(base, window=W, sinks=S, chunk=C)
    if random:
        randomise(model)
    # Of a random model hardly a response would end.
    model.generation_config.eos_token_id = list(range(ENDS))
    return OpenedModel(model, tokenizer)


def write_prompts(folder: Path, questions: list[str] | None = None) -> str:
    """A file of rows with a prompt each."""
    path = folder / "prompts.jsonl"
    rows = [{"prompt": question} for question in questions or QUESTIONS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)
