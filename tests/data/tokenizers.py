"""A byte-level BPE tokenizer trained on a few lines, with the released templates of three models.

Tests that need no particular vocabulary run on it within milliseconds; those marked ``smollm2``
take SmolLM2's own.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEMPLATES = Path(__file__).parent / "templates"
NAMES = ("qwen3", "smollm2", "llama3")
ENDS = {"qwen3": "<|im_end|>", "smollm2": "<|im_end|>", "llama3": "<|eot_id|>"}
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
TEXT = (
    "user assistant system You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    "The river rises in the north, and what the old man said about it was true.\n\nWho said so?",
    "北方的河流每年春天都会涨水，老人说的话是真的。他为什么这样说？",
    "the and of to in that was it is for on with as are be this have from not\n\n<think>\n</think>",
)
# The pattern of Qwen2 and Qwen3: numbers digit by digit, newlines apart from words.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def template(name: str) -> str:
    return (TEMPLATES / f"{name}.jinja").read_text()


def adapt(tokenizer: Any, name: str) -> Any:
    """Give a tokenizer the control tokens of these templates, and one of them."""
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    # Qwen3's tokenizer knows them as tokens that are not special.
    tokenizer.add_tokens(
        [AddedToken("<think>", special=False), AddedToken("</think>", special=False)]
    )
    if name == "llama3":
        tokenizer.add_special_tokens({"bos_token": "<|begin_of_text|>"})
    tokenizer.chat_template = template(name)
    return tokenizer


@lru_cache
def _bpe() -> str:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(TEXT * 4, trainer)
    return bpe.to_str()


def small_tokenizer(name: str = "qwen3") -> Any:
    """The trained tokenizer with one of the templates."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_bpe()),
        eos_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    return adapt(fast, name)
