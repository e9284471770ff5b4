"""Tiny models under test: converted and plain, in float64, with every slow weight at random."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from allmem.config import WindowConfig
from allmem.evaluation.feeding import PlainModel
from allmem.evaluation.local import LocalModel
from allmem.evaluation.model import Completion, EvaluatedModel, Prompt
from allmem.opening import OpenedModel
from allmem.reading import Sampling
from tests.models.tiny import EOS, FIRST_WORD, C, S, V, base_model, tiny_model, without_memory

__all__ = [
    "LetterTokenizer",
    "Recorder",
    "converted",
    "plain",
    "prompts_of",
    "random_ids",
    "silent",
]


class Recorder(EvaluatedModel):
    """Keeps what it is asked, and says always the same."""

    label = "recorder"

    def __init__(self, tokenizer: Any = None, says: str = "", reach: int | None = None) -> None:
        self.tokenizer, self.says, self.reach = tokenizer, says, reach
        self.asked: list[Prompt] = []
        self.how: list[Sampling] = []
        self.numbers: list[int] = []

    def identity(self) -> dict[str, Any]:
        return {}

    def complete(
        self, prompts: Sequence[Prompt], sampling: Sampling, numbers: Sequence[int]
    ) -> list[Completion]:
        self.asked += prompts
        self.how.append(sampling)
        self.numbers += numbers
        return [Completion(self.say(prompt), 5, 7, True) for prompt in prompts]

    def say(self, prompt: Prompt) -> str:
        """The answer to a prompt."""
        return self.says


class LetterTokenizer:
    """A letter for every token; those below ``FIRST_WORD`` are special."""

    eos_token_id = EOS
    bos_token_id = None
    chat_template = None

    def __len__(self) -> int:
        return V

    def get_vocab(self) -> dict[str, int]:
        return {self.letter(token): token for token in range(V)}

    def letter(self, token: int) -> str:
        return chr(ord("A") + token)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return "".join(self.letter(i) for i in ids if i >= FIRST_WORD or not skip_special_tokens)

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) - ord("A") for letter in text]}


def plain(name: str = "qwen3", seed: int = 0) -> LocalModel:
    model = base_model(name, seed).to(torch.float64)
    return LocalModel(PlainModel(model, LetterTokenizer()), "plain")


def converted(reader: str = "memory", name: str = "qwen3", **options: Any) -> LocalModel:
    model = tiny_model(name, dtype=torch.float64, **options)
    return LocalModel(OpenedModel(model, LetterTokenizer()), "converted", reader)


def silent(window: int, name: str = "qwen3") -> LocalModel:
    """Converted, with alpha = 0, and a window of that size."""
    model = without_memory(tiny_model(name, dtype=torch.float64))
    opened = OpenedModel(model, LetterTokenizer(), WindowConfig(window, S), C)
    return LocalModel(opened, "silent")


def random_ids(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(FIRST_WORD, V, (length,), generator=generator).tolist()


def prompts_of(ids: Sequence[list[int]], new: int = 9, stop: tuple[str, ...] = ()) -> list[Prompt]:
    return [Prompt(one, "", None, max_new_tokens=new, stop=stop) for one in ids]
