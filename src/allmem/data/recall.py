"""Associative recall: the smallest task that shows whether a memory remembers.

A sequence is a run of key-value pairs, ``k v k v ...``. Each sequence ties its keys to values of
its own; a key that comes again asks for the value that it had before. With a window shorter than
the sequence, some of those values are out of sight.

Letters: B sequences, T tokens of a sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["IGNORED", "RecallTask"]

IGNORED = -100
"""Label of a position that asks for nothing."""


@dataclass(frozen=True)
class RecallTask:
    """Sequences of ``length`` tokens that tie ``keys`` keys, drawn from ``vocabulary`` ones, to
    values.

    Token ids: keys are 0 ... vocabulary - 1, values follow.
    """

    length: int = 128
    keys: int = 32
    vocabulary: int = 64

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return 2 * self.vocabulary

    def sample(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw sequences.

        Returns:
            input ids [B, T] and answers [B, T]: at a key that was seen before, its value, which is
            the next token; ``IGNORED`` elsewhere.
        """
        pairs = self.length // 2
        order = torch.rand(batch, self.vocabulary, generator=generator).argsort(1)
        keys = order[:, : self.keys]
        values = torch.randint(self.vocabulary, (batch, self.keys), generator=generator)
        drawn = torch.randint(self.keys, (batch, pairs), generator=generator)
        ids = torch.stack([keys.gather(1, drawn), values.gather(1, drawn) + self.vocabulary], 2)
        seen = (drawn[:, :, None] == drawn[:, None, :]).tril(-1).any(2)
        answers = torch.full((batch, pairs, 2), IGNORED)
        answers[..., 0] = torch.where(seen, ids[..., 1], IGNORED)
        return ids.flatten(1), answers.flatten(1)
