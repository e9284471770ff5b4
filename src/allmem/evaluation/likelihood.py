"""How likely continuations of texts are.

Contexts that several continuations share are read once. Logits are held for the continuations
alone, a block at a time.

Letters: B texts of a batch, T slots, V words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
    new_feed: Callable[[], Feed], pairs: Sequence[Pair], together: bool = True
) -> list[Likelihood]:
    """How likely every continuation is, in the order of ``pairs``.

    Args:
        new_feed: makes a batch of texts to be read.
        pairs: tokens of a context and its continuation.
        together: whether several contexts may share a batch.

    Raises:
        AllMemError: if a context has no token.
    """
    by_context: dict[tuple[int, ...], list[int]] = {}
    for number, (context, _) in enumerate(pairs):
        if not context:
            raise AllMemError("a context has no token; the first token of a text has no likelihood")
        by_context.setdefault(tuple(context), []).append(number)
    found: dict[int, Likelihood] = {}
    for contexts in _batches(sorted(by_context, key=lambda ids: (len(ids), ids)), together):
        numbers = [by_context[context] for context in contexts]
        asked = [[pairs[number][1] for number in of_one] for of_one in numbers]
        results = _one_batch(new_feed(), contexts, asked)
        flat = [number for of_one in numbers for number in of_one]
        found |= dict(zip(flat, results, strict=True))
    return [found[number] for number in range(len(pairs))]


def _batches(contexts: Sequence[tuple[int, ...]], together: bool) -> list[list[tuple[int, ...]]]:
    """Contexts of like length, so that a batch holds little padding."""
    batches: list[list[tuple[int, ...]]] = []
    for context in contexts:
        # They come in order of their length: this one is the longest so far.
        fits = batches and (len(batches[-1]) + 1) * len(context) <= CONTEXT_SLOTS
        if fits and together:
            batches[-1].append(context)
        else:
            batches.append([context])
    return batches


def _one_batch(
    feed: Feed, contexts: Sequence[Sequence[int]], asked: Sequence[Sequence[Sequence[int]]]
) -> list[Likelihood]:
    """Likelihoods of each context's continuations, one after the other."""
    longest = max(map(len, contexts))
    if longest > 1:
        feed.read(*left_padded([context[:-1] for context in contexts]))
    rows = [row for row, of_one in enumerate(asked) for _ in of_one]
    if longest > 1:
        feed.select(rows)
    # The last token of a context predicts the first of its continuation.
    said = [list(ids) for of_one in asked for ids in of_one]
    inputs = [[contexts[row][-1], *ids][: len(ids)] for row, ids in zip(rows, said, strict=True)]
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
