"""What a student is compared with: a teacher's hidden states, or what was stored of its answers.

A head is any function that is frozen, takes positions independently and gives finite logits.

Letters: n positions, D hidden size, V vocabulary, k words kept of a prediction, S words on which
two predictions are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from allmem.errors import AllMemError

__all__ = [
    "BLOCK",
    "FullTarget",
    "Head",
    "Target",
    "TopTarget",
    "log_probabilities",
    "top_log_probs",
]

Head = Callable[[Tensor], Tensor]
"""[n, D] to logits [n, V]; frozen. A module is called with its weight's dtype, anything else with
the hidden states as they are; neither under autocast."""

BLOCK = 256
"""Positions per block: two fp32 blocks of logits over 150k words stay below 400 MB."""

STORED = torch.float16
"""Of stored log-probabilities. On text through SmolLM2-135M it moved the gradient by under 0.2% for
each divergence and 8 to 256 words, where a bf16 head moved it by 4%; fp32 takes a third more room.
"""


class Target(Protocol):
    """What a student is compared with, position by position."""

    def __len__(self) -> int:
        """Positions."""
        ...

    def select(self, places: Tensor) -> Target:
        """Some of the positions; places [m] int64."""
        ...

    def compared(self, here: slice, found: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of teacher and student on the same words, [n, S] each.

        Args:
            here: the positions of the block.
            found: log-probabilities of the student there, [n, V]; the second result keeps their
                gradient.
        """
        ...


@dataclass(frozen=True, eq=False)
class FullTarget:
    """The teacher's hidden states, through the teacher's head; gets no gradient."""

    hidden: Tensor
    """[n, D] of the teacher, which may differ from the student's."""
    head: Head

    def __len__(self) -> int:
        return len(self.hidden)

    def select(self, places: Tensor) -> FullTarget:
        return FullTarget(self.hidden[places], self.head)

    def compared(self, here: slice, found: Tensor) -> tuple[Tensor, Tensor]:
        """Over the whole vocabulary.

        Raises:
            AllMemError: if the two vocabularies differ in size.
        """
        with torch.no_grad():
            expected = log_probabilities(self.head, self.hidden[here])
        if expected.shape != found.shape:
            raise AllMemError(
                f"the teacher's head knows {expected.shape[1]} words and the student's "
                f"{found.shape[1]}; choose a teacher with the student's vocabulary"
            )
        return expected, found


@dataclass(frozen=True, eq=False)
class TopTarget:
    """The teacher's likeliest words, as ``top_log_probs`` stores them.

    The divergence runs over these words and one bucket that holds the rest of the mass of each
    model; a temperature softens words and bucket alike. With k = V there is no bucket, and the
    divergence is the dense one.

    Raises:
        AllMemError: if the two shapes differ.
    """

    ids: Tensor
    """[n, k] of integers, no word twice at a position."""
    log_probs: Tensor
    """[n, k], finite."""

    def __post_init__(self) -> None:
        if self.ids.shape != self.log_probs.shape:
            raise AllMemError(
                f"ids are {list(self.ids.shape)} and log_probs {list(self.log_probs.shape)}: give "
                "one log-probability for each word"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, places: Tensor) -> TopTarget:
        return TopTarget(self.ids[places], self.log_probs[places])

    def compared(self, here: slice, found: Tensor) -> tuple[Tensor, Tensor]:
        """Over k words and the bucket.

        Raises:
            AllMemError: if more words were stored than the student knows.
        """
        ids = self.ids[here].long()
        expected = self.log_probs[here].to(found.dtype)
        words, vocabulary = ids.shape[1], found.shape[1]
        if words > vocabulary:
            raise AllMemError(
                f"{words} words are stored at each position and the student knows {vocabulary}; "
                "store the predictions of a teacher with the student's vocabulary"
            )
        reached = found.gather(1, ids)
        if words < vocabulary:
            # Less than this, 1 minus a sum cannot tell from nothing.
            least = torch.finfo(found.dtype).eps
            rest = (1 - expected.exp().sum(1, keepdim=True)).clamp(min=least).log()
            expected = torch.cat([expected, rest], 1)
            # Summed over the other words: 1 minus the mass of these would lose a small rest, and
            # its gradient would be noise.
            rest = found.scatter(1, ids, -torch.inf).logsumexp(1, keepdim=True)
            reached = torch.cat([reached, rest], 1)
        # Rounded to 16 bits, or summed over a whole vocabulary, the mass of either is not quite 1.
        return expected.log_softmax(1), reached.log_softmax(1)


def log_probabilities(head: Head, hidden: Tensor) -> Tensor:
    """log p of every word, [n, V], in fp32 at least."""
    weight = head.weight if isinstance(head, nn.Module) and hasattr(head, "weight") else None
    if isinstance(weight, Tensor) and weight.is_floating_point():
        hidden = hidden.to(weight.dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        logits = head(hidden)
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


@torch.no_grad()
def top_log_probs(hidden: Tensor, head: Head, k: int, block: int = BLOCK) -> tuple[Tensor, Tensor]:
    """The k likeliest words of every position, the likeliest first, for ``TopTarget``.

    Args:
        hidden: [n, D]

    Returns:
        ids [n, k] int32 and their log-probabilities [n, k] float16.

    Raises:
        AllMemError: if ``k`` is not between 1 and V.
    """
    if k < 1:
        raise AllMemError(f"k = {k} must be 1 or more")
    ids = torch.empty(len(hidden), k, dtype=torch.int32, device=hidden.device)
    log_probs = torch.empty(len(hidden), k, dtype=STORED, device=hidden.device)
    for first in range(0, len(hidden), block):
        here = slice(first, first + block)
        found = log_probabilities(head, hidden[here])
        if k > found.shape[1]:
            raise AllMemError(f"k = {k} is more than the {found.shape[1]} words of the vocabulary")
        top = found.topk(k)
        ids[here] = top.indices
        log_probs[here] = top.values.clamp(min=torch.finfo(STORED).min)
    return ids, log_probs
