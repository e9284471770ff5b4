"""One text that a loaded model reads, piece by piece."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from allmem.errors import AllMemError
from allmem.evaluation.feeding import Feed
from allmem.evaluation.generating import Ending, generate
from allmem.evaluation.model import Session
from allmem.reading import Sampling

__all__ = ["LocalSession"]

BLOCK = 256
"""Tokens whose logits are held at once."""


class LocalSession(Session):
    """A text and what a model remembers of it.

    Args:
        feed: a batch of one that has read nothing yet.
        stop: tokens that end what the model writes.
        decode: from tokens to text.
    """

    def __init__(
        self, feed: Feed, stop: Collection[int], decode: Callable[[Sequence[int]], str]
    ) -> None:
        self._feed = feed
        self._stop = stop
        self._decode = decode

    @property
    def cache(self) -> Any:
        """What is remembered: an ``AllMemCache``, or a cache of transformers."""
        return self._feed.cache

    @cache.setter
    def cache(self, cache: Any) -> None:
        self._feed.cache = cache

    @property
    def tokens(self) -> int:  # type: ignore[override]
        return self._feed.slots

    def read(self, ids: Sequence[int]) -> None:
        if ids:
            self._read(ids, keep=1)

    def losses(self, ids: Sequence[int]) -> Tensor:
        return self.check(ids)[0]

    def check(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        losses, likeliest = [], []
        for first in range(0, len(ids), BLOCK):
            said = list(ids[first : first + BLOCK])
            before = self._feed.last  # [1, V]
            logits = self._read(said, keep=len(said))[:-1]
            if before is None:
                losses.append(torch.full((1,), torch.nan))
                likeliest.append(torch.zeros(1, dtype=torch.bool))
                said = said[1:]
            else:
                logits = torch.cat([before, logits])
            targets = torch.tensor(said, dtype=torch.int64, device=logits.device)
            losses.append(F.cross_entropy(logits.float(), targets, reduction="none").cpu())
            likeliest.append((logits.argmax(-1) == targets).cpu())
        if not losses:
            return torch.empty(0), torch.empty(0, dtype=torch.bool)
        return torch.cat(losses), torch.cat(likeliest)

    def write(
        self, max_new_tokens: int, stop: Sequence[str] = (), sampling: Sampling | None = None
    ) -> str:
        last, before = self._feed.last, self.tokens
        if last is None:
            raise AllMemError("nothing was read yet: there is nothing to continue")
        ending = Ending(self._stop, tuple(stop), max_new_tokens)
        how = sampling or Sampling()
        answer = generate(self._feed, last, [ending], self._decode, how, [before])[0]
        # The last token is read when the next one is wanted, which it was not.
        self.read(answer.ids[self.tokens - before :])
        return answer.text(self._decode)

    def fork(self) -> Self:
        twin = copy.copy(self)
        twin._feed = self._feed.fork()
        return twin

    @property
    def nbytes(self) -> int:
        return self._feed.nbytes

    def _read(self, ids: Sequence[int], keep: int) -> Tensor:
        """Logits of the last ``keep`` tokens, [keep, V]"""
        return self._feed.read(torch.tensor([list(ids)]), keep=keep)[0]
