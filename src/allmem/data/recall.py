"""Associative recall: the smallest task that shows whether a memory remembers.

A sequence is a run of key-value pairs, ``k v k v ...``. The first half of it ties every key to a
value of this sequence's own; from then on each pair asks for one of those keys, drawn anew every
time, and answers it. So at every question the share that a window can answer is about the same: of
``n`` pairs one at least has the key with probability ``1 - (1 - 1 / keys) ** n`` (a little more
where ties, which repeat no key, are among them).

Letters: B sequences, T tokens of a sequence, P = T / 2 pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from allmem.data.labels import IGNORED
from allmem.errors import AllMemError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["RecallTask"]


@dataclass(frozen=True)
class RecallTask:
    """Sequences of ``length`` tokens that tie ``keys`` keys, drawn from ``vocabulary`` ones, to
    values, and ask for them until the end.

    Token ids: keys are 0 ... vocabulary - 1, values follow.

    Raises:
        AllMemError: if the keys are more than there are, or leave no room for a question.
    """

    length: int = 128
    keys: int = 32
    vocabulary: int = 64

    def __post_init__(self) -> None:
        if not 1 <= self.keys <= self.vocabulary:
            raise AllMemError(
                f"RecallTask: keys = {self.keys} must lie between 1 and vocabulary = "
                f"{self.vocabulary}"
            )
        if self.length % 2 or self.length <= self.first_question:
            raise AllMemError(
                f"RecallTask: length = {self.length} must be even and above {self.first_question}, "
                f"the tokens that tie {self.keys} keys"
            )

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return 2 * self.vocabulary

    @property
    def first_question(self) -> int:
        """Position of the first key that asks; every second one from there on does too."""
        return 2 * self.keys

    def sample(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw sequences.

        Returns:
            input ids [B, T] and answers [B, T]: at a key that asks, its value, which is the next
            token; ``IGNORED`` elsewhere.
        """
        import torch

        order = torch.rand(batch, self.vocabulary, generator=generator).argsort(1)
        keys = order[:, : self.keys]
        values = torch.randint(self.vocabulary, keys.shape, generator=generator)
        questions = self.length // 2 - self.keys
        asked = torch.randint(self.keys, (batch, questions), generator=generator)
        pairs = torch.stack([keys, values + self.vocabulary], 2)  # [B, keys, 2]
        again = pairs.gather(1, asked[..., None].expand(-1, -1, 2))
        ids = torch.cat([pairs, again], 1).flatten(1)
        answers = torch.full_like(ids, IGNORED)
        answers[:, self.first_question :: 2] = again[..., 1]
        return ids, answers

    def within(self, ids: Tensor, window: int) -> Tensor:
        """Where the answer lies within a window: [B, T] bool, false where nothing is asked.

        Attention over ``window`` tokens, the question included, sees those values alone.
        """
        import torch

        key = ids[:, ::2]  # [B, P]
        place = torch.arange(key.shape[1])
        # Pair j's value stands 2 (i - j) - 1 tokens before pair i's key.
        distance = 2 * (place[:, None] - place[None]) - 1
        near = (distance > 0) & (distance < window)
        same = key[:, :, None] == key[:, None]  # [B, P, P]
        seen = torch.zeros_like(ids, dtype=torch.bool)
        seen[:, ::2] = (same & near).any(2)
        seen[:, : self.first_question] = False
        return seen
