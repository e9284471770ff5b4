"""A model that is loaded here, converted or not, under test.

A converted model has several readers, all of the same weights: with its memory, without it (the
window alone), and with a memory that is never written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, Literal

import torch

from allmem.batching import left_padded
from allmem.errors import AllMemError, unknown_name
from allmem.evaluation.budget import Budget, bytes_of_text, free_bytes
from allmem.evaluation.feeding import (
    Feed,
    PlainModel,
    Source,
    Variant,
    allows_holes,
    allows_padding,
)
from allmem.evaluation.generating import Ending, generate
from allmem.evaluation.grouping import common_beginning
from allmem.evaluation.likelihood import likelihoods
from allmem.evaluation.model import Completion, EvaluatedModel, Likelihood, Prompt, Session
from allmem.evaluation.session import LocalSession
from allmem.models.fingerprint import fingerprint, vocabulary
from allmem.models.variants import without_memory, without_writing
from allmem.opening import OpenedModel
from allmem.reading import Sampling, stop_ids

__all__ = ["READERS", "LocalModel", "Reader"]

Reader = Literal["memory", "window", "unwritten"]
READERS: dict[str, Variant | None] = {
    "memory": None,
    "window": without_memory,
    "unwritten": without_writing,
}
"""Readers of a converted model, and what is done to it while they read."""

SHARED = 256
"""Tokens that prompts must have in common for them to be read once."""


class LocalModel(EvaluatedModel):
    """A model that is loaded here.

    Args:
        opened: converted or plain, with its tokenizer.
        label: its name in reports.
        reader: of a converted model.
        budget: bytes that all texts of a batch may take up, which is read in parts if it needs
            more; ``None`` for half of what is free on a GPU, 4 GiB elsewhere. A single text is
            read whatever it takes.

    Raises:
        AllMemError: on an unknown reader, or any but the first one of a plain model.
    """

    def __init__(
        self, opened: Source, label: str, reader: str = "memory", budget: int | None = None
    ) -> None:
        if reader not in READERS:
            raise AllMemError(unknown_name("reader", reader, READERS))
        if reader != "memory" and not isinstance(opened, OpenedModel):
            raise AllMemError(
                f"{label} is not converted: it has no reader {reader!r}; give --window, or name "
                "a converted model"
            )
        self.opened = opened
        self.label = label
        self.reader = reader
        self.budget = budget
        self.variant = READERS[reader]
        self.tokenizer = opened.tokenizer
        self.sees = opened.sees
        if isinstance(opened, OpenedModel):
            window = opened.window or opened.model.config.window_config
            self.sinks = window.sinks
            self.chunk = opened.chunk or opened.model.config.chunk or 0
        config: Any = opened.model.config.get_text_config()
        self.reach = getattr(config, "max_position_embeddings", None)
        self._stop = sorted(stop_ids(opened.model, self.tokenizer))
        opened.model.eval()

    def identity(self) -> dict[str, Any]:
        model: Any = self.opened.model
        template = str(self.tokenizer.chat_template or "").encode()
        found = {
            "kind": "converted" if isinstance(self.opened, OpenedModel) else "plain",
            "weights": fingerprint(dict(model.named_parameters())),
            "dtype": str(model.dtype).removeprefix("torch."),
            "tokenizer": vocabulary(self.tokenizer)["fingerprint"],
            "template": hashlib.sha256(template).hexdigest()[:16],
            "reach": self.reach,
        }
        if isinstance(self.opened, PlainModel):
            found |= {"RoPE scaling": str(self.opened.scaling)} if self.opened.scaling else {}
        else:
            config = self.opened.model.config
            window = self.opened.window or config.window_config
            found |= {
                "reader": self.reader,
                "window": window.window,
                "sinks": window.sinks,
                "chunk": self.opened.chunk or config.chunk,
            }
        return found

    def feed(self) -> Feed:
        """A new batch of texts."""
        return Feed(self.opened, self.variant)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, without control tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def complete(
        self, prompts: Sequence[Prompt], sampling: Sampling, numbers: Sequence[int]
    ) -> list[Completion]:
        ids = [prompt.ids for prompt in prompts]
        for prompt, one in zip(prompts, ids, strict=True):
            if not one:
                raise AllMemError(f"{self.label} has nothing to read: a prompt has no tokens")
            if prompt.max_new_tokens < 1:
                raise AllMemError(f"max_new_tokens = {prompt.max_new_tokens} must be at least 1")
        tokens = [one for one in ids if one]
        sizes = [
            (len(one), prompt.max_new_tokens) for prompt, one in zip(prompts, tokens, strict=True)
        ]
        answered: dict[int, Completion] = {}
        for rows in self._batches(sizes, tokens):
            part = [prompts[row] for row in rows]
            found = self._complete(
                part, [tokens[row] for row in rows], sampling, [numbers[row] for row in rows]
            )
            answered |= dict(zip(rows, found, strict=True))
        return [answered[row] for row in range(len(prompts))]

    def _batches(
        self, sizes: Sequence[tuple[int, int]], ids: Sequence[Sequence[int]]
    ) -> Iterator[list[int]]:
        """Which prompts are read together: those that go together, as far as the budget goes."""
        for rows in self._together(ids):
            for part in self._free().parts([sizes[row] for row in rows]):
                yield [rows[i] for i in part]

    def _free(self) -> Budget:
        """What texts may take up now."""
        free = free_bytes(self.opened.model.device) if self.budget is None else self.budget
        return Budget(free, self._of_text)

    @cached_property
    def _of_text(self) -> Callable[[int], int]:
        return bytes_of_text(self.opened, memory=self.variant is not without_memory)

    def _together(self, ids: Sequence[Sequence[int]]) -> list[list[int]]:
        """Which prompts go together: those that begin alike, and all others."""
        if not allows_padding(self.opened):
            return [[row] for row in range(len(ids))]
        if not allows_holes(self.opened):
            return [list(range(len(ids)))]
        batches: list[list[int]] = []
        single = []
        for rows in _alike(ids):
            if len(rows) > 1:
                batches.append(rows)
            else:
                single += rows
        return [*batches, sorted(single)] if single else batches

    def _complete(
        self,
        prompts: Sequence[Prompt],
        ids: Sequence[Sequence[int]],
        sampling: Sampling,
        numbers: Sequence[int],
    ) -> list[Completion]:
        feed = self.feed()
        shared = 0
        if len(ids) > 1 and allows_holes(self.opened):
            # Every prompt keeps a token of its own, to be read in the batch.
            shared = min(_common(ids), min(map(len, ids)) - 1)
        if shared >= SHARED:
            feed.read(torch.tensor([list(ids[0][:shared])]))
            feed.select([0] * len(ids))
        else:
            shared = 0
        logits = feed.read(*left_padded([one[shared:] for one in ids]))[:, -1]
        endings = [self._ending(prompt) for prompt in prompts]
        answers = generate(feed, logits, endings, self.decode, sampling, numbers)
        return [
            Completion(answer.text(self.decode), len(one), len(answer.ids), answer.finished)
            for answer, one in zip(answers, ids, strict=True)
        ]

    def _ending(self, prompt: Prompt) -> Ending:
        stop = list(self._stop)
        if prompt.ends_at:
            stop += self.tokenizer(prompt.ends_at, add_special_tokens=False)["input_ids"][-1:]
        return Ending(stop, prompt.stop, prompt.max_new_tokens, says_something=bool(prompt.ends_at))

    def likelihoods(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Likelihood]:
        together = allows_padding(self.opened)
        return likelihoods(self.feed, pairs, self._free().texts, together)

    def session(self) -> Session:
        return LocalSession(self.feed(), self._stop, self.decode)


def _common(texts: Sequence[Sequence[int]]) -> int:
    """Tokens with which all of them begin."""
    ids = [list(text) for text in texts]
    # What the first and the last in order have in common, all between them have too.
    return common_beginning(min(ids), max(ids))


def _alike(texts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Texts by their beginnings: those of a group share ``SHARED`` tokens, and half of each."""
    order = sorted(range(len(texts)), key=lambda row: list(texts[row]))
    groups: list[list[int]] = []
    for row in order:
        group = groups[-1] if groups else []
        together = [texts[other] for other in [*group, row]]
        if group and _common(together) >= max(SHARED, max(map(len, together)) / 2):
            group.append(row)
        else:
            groups.append([row])
    return [sorted(group) for group in groups]
