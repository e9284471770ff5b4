"""How likely continuations of texts are.

Contexts that several continuations share are read once, and copied for as many of them at a time
as there may be. Logits are held for the continuations alone, a block at a time.

Letters: B texts of a batch, T slots, V words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from allmem.batching import left_padded
from allmem.errors import AllMemError
from allmem.evaluation.feeding import Feed
from allmem.evaluation.model import Likelihood

__all__ = ["likelihoods"]

Pair = tuple[Sequence[int], Sequence[int]]

CONTEXT_SLOTS = 16384
"""Slots of contexts, padding included, that are read as one batch."""
LOGIT_SLOTS = 512
"""Slots whose logits are held at once."""


def likelihoods(
    new_feed: Callable[[], Feed],
    pairs: Sequence[Pair],
    most: Callable[[int], int],
    together: bool = True,
) -> list[Likelihood]:
    """How likely every continuation is, in the order of ``pairs``.

    Args:
        new_feed: makes a batch of texts to be read.
        pairs: tokens of a context and its continuation.
        most: how many texts of so many tokens may be held at once, beside a context.
        together: whether several contexts may share a batch.

    Raises:
        AllMemError: if a context has no token.
    """
    by_context: dict[tuple[int, ...], list[int]] = {}
    for number, (context, _) in enumerate(pairs):
        if not context:
            raise AllMemError("a context has no token; the first token of a text has no likelihood")
        by_context.setdefault(tuple(context), []).append(number)
    asked = [
        _Asked(context, numbers, [pairs[number][1] for number in numbers])
        for context, numbers in sorted(by_context.items(), key=lambda one: (len(one[0]), one[0]))
    ]
    found: dict[int, Likelihood] = {}
    for batch in _batches(asked, most, together):
        flat = [number for one in batch for number in one.numbers]
        found |= dict(zip(flat, _one_batch(new_feed(), batch, most), strict=True))
    return [found[number] for number in range(len(pairs))]


@dataclass(frozen=True)
class _Asked:
    """A context and all its continuations."""

    context: tuple[int, ...]
    numbers: Sequence[int]
    """Which of the pairs they are."""
    said: Sequence[Sequence[int]]

    @property
    def longest(self) -> int:
        """Tokens of the longest continuation."""
        return max(map(len, self.said))


def _batches(
    asked: Sequence[_Asked], most: Callable[[int], int], together: bool
) -> list[list[_Asked]]:
    """Contexts of like length, so that a batch holds little padding, and so few that there may be
    a copy for each of their continuations at once. One that has more of them stands alone."""
    batches: list[list[_Asked]] = []
    texts = longest = 0
    for one in asked:
        texts, longest = texts + len(one.said), max(longest, one.longest)
        # They come in order of their length: this context is the longest so far.
        width = len(one.context)
        fits = batches and (len(batches[-1]) + 1) * width <= CONTEXT_SLOTS
        if fits and together and texts <= most(width + longest):
            batches[-1].append(one)
        else:
            batches.append([one])
            texts, longest = len(one.said), one.longest
    return batches


def _one_batch(feed: Feed, batch: Sequence[_Asked], most: Callable[[int], int]) -> list[Likelihood]:
    """Likelihoods of each context's continuations, one after the other."""
    width = max(len(one.context) for one in batch)
    if width > 1:
        feed.read(*left_padded([one.context[:-1] for one in batch]))
    copies = [(row, ids) for row, one in enumerate(batch) for ids in one.said]
    step = most(width + max(one.longest for one in batch))
    found: list[Likelihood] = []
    for first in range(0, len(copies), step):
        here = copies[first : first + step]
        reader = feed if first + step >= len(copies) else feed.fork()
        if width > 1:
            reader.select([row for row, _ in here])
        # The last token of a context predicts the first of its continuation.
        found += _follow(reader, [(batch[row].context[-1], list(ids)) for row, ids in here])
    return found


def _follow(feed: Feed, asked: Sequence[tuple[int, list[int]]]) -> list[Likelihood]:
    """Likelihoods of continuations, each of a row of its own, behind the token before it."""
    said = [ids for _, ids in asked]
    inputs = [[before, *ids][: len(ids)] for before, ids in asked]
    width = max(map(len, said), default=0)
    totals = torch.zeros(len(said), dtype=torch.float64)
    greedy = torch.ones(len(said), dtype=torch.bool)
    step = max(1, LOGIT_SLOTS // len(said))
    for first in range(0, width, step):
        last = min(first + step, width)
        ids, mask = _columns(inputs, first, last)
        targets, _ = _columns(said, first, last)
        logits = feed.read(ids, mask, keep=last - first).float()  # [B, T, V]
        targets, counts = targets.to(logits.device), mask.bool()
        right = (logits.argmax(-1) == targets).cpu() | ~counts
        chosen = logits.gather(-1, targets[..., None])[..., 0] - logits.logsumexp(-1)  # [B, T]
        totals += torch.where(counts, chosen.double().cpu(), 0.0).sum(1)
        greedy &= right.all(1)
    return [
        Likelihood(total, len(ids), bool(likeliest))
        for total, ids, likeliest in zip(totals.tolist(), said, greedy.tolist(), strict=True)
    ]


def _columns(
    rows: Sequence[Sequence[int]], first: int, last: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns of right-padded rows, and their mask, [B, T]"""
    ids = torch.zeros(len(rows), last - first, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(rows):
        part = tokens[first:last]
        ids[row, : len(part)] = torch.tensor(part, dtype=torch.int64)
        mask[row, : len(part)] = 1
    return ids, mask
