"""Answers of a batch, token by token, each until it ends: at a token of the model, at a text, or at
its own limit.

Letters: B answers, V words.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from allmem.batching import random_states, sampling_steps
from allmem.evaluation.feeding import Feed
from allmem.reading import Sampling

__all__ = ["Answer", "Ending", "generate"]

Decode = Callable[[Sequence[int]], str]

TAIL = 8, 4
"""So many tokens, and so many more for each character of a stop text, in which it is looked for
first."""


@dataclass(frozen=True)
class Ending:
    """What ends an answer."""

    tokens: Collection[int]
    texts: Sequence[str]
    limit: int
    says_something: bool = False
    """Whether the first token cannot be one that ends it."""

    def place(self, text: str) -> int | None:
        """Where the first stop text begins."""
        places = [text.find(stop) for stop in self.texts if stop in text]
        return min(places, default=None)


@dataclass
class Answer:
    """An answer as it grows."""

    ending: Ending
    ids: list[int] = field(default_factory=list)
    """Without the token that ended it."""
    finished: bool = False
    """Whether it ended before the limit."""

    def take(self, token: int, decode: Decode) -> bool:
        """Add a token; returns whether the answer has ended."""
        if token in self.ending.tokens:
            self.finished = True
            return True
        self.ids.append(token)
        # The whole is decoded only where its end may hold a stop text.
        self.finished = self._stops(self.ids[-self._tail :], decode) and self._stops(
            self.ids, decode
        )
        return self.finished or len(self.ids) >= self.ending.limit

    def text(self, decode: Decode) -> str:
        """What was said, up to a stop text."""
        said = decode(self.ids)
        return said[: self.ending.place(said)]

    @property
    def _tail(self) -> int:
        return TAIL[0] + TAIL[1] * max(map(len, self.ending.texts), default=0)

    def _stops(self, ids: Sequence[int], decode: Decode) -> bool:
        return bool(self.ending.texts) and self.ending.place(decode(ids)) is not None


def generate(
    feed: Feed,
    logits: Tensor,
    endings: Sequence[Ending],
    decode: Decode,
    sampling: Sampling,
    numbers: Sequence[int],
) -> list[Answer]:
    """Answers of a batch.

    Args:
        feed: that has read the prompts; it reads along, for those that still go on.
        logits: [B, V] behind the prompts.
        endings: of each answer.
        decode: from tokens to text.
        sampling: how tokens are chosen.
        numbers: of the prompts: which random numbers each draws.
    """
    answers = [Answer(ending) for ending in endings]
    states = random_states(sampling, numbers, logits.device)
    # Which answer each row of the feed is, and which of them go on.
    rows = alive = list(range(len(answers)))
    logits = _without_silence(logits, endings)
    while True:
        no_ids = torch.empty(len(rows), 0, dtype=torch.int64, device=logits.device)
        choose = sampling_steps(sampling, [states[row] for row in rows])
        tokens = choose(no_ids, logits.float()).argmax(-1).tolist()
        alive = [
            row
            for row, token in zip(rows, tokens, strict=True)
            if row in alive and not answers[row].take(token, decode)
        ]
        if not alive:
            return answers
        if 2 * len(alive) <= len(rows):
            # The others would only be read along.
            kept = [i for i, row in enumerate(rows) if row in alive]
            feed.select(kept)
            rows, tokens = alive, [tokens[i] for i in kept]
        logits = feed.read(torch.tensor(tokens)[:, None])[:, -1]


def _without_silence(logits: Tensor, endings: Sequence[Ending]) -> Tensor:
    """Logits [B, V] of first tokens, without the ends of answers that have to say something."""
    if not any(ending.says_something for ending in endings):
        return logits
    allowed = logits.clone()
    for row, ending in zip(allowed, endings, strict=True):
        if ending.says_something:
            row[list(ending.tokens)] = -torch.inf
    return allowed
