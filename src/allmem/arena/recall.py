"""Associative recall as training rows, and what a model answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from allmem.config import WindowConfig
from allmem.data.labels import IGNORED
from allmem.data.recall import RecallTask
from allmem.distill.rows import Row
from allmem.models.cache import AllMemCache
from allmem.models.modeling import AllMemForCausalLM

__all__ = ["SEED_STRIDE", "Answers", "RecallRows", "answer", "asked"]

SEED_STRIDE = 10**8
"""Keeps the sequences of two seeds apart."""
EVALUATED = 2 * 10**6
"""Seed of the sequences that nobody is trained on, and that no setting was chosen on: those of
``benchmarks/associative_recall.py`` are others."""
TOGETHER = 64
"""Sequences that are read at once."""


class RecallRows:
    """Fresh sequences of which the answers are learned, or every token."""

    def __init__(self, task: RecallTask, seed: int, everything: bool = False) -> None:
        self.task, self.seed, self.everything = task, seed, everything
        self.longest, self.mean = task.length, float(task.length)

    def read(self, first: int, rank: int = 0, world: int = 1) -> Iterator[Row]:
        number = first + rank
        while True:
            generator = torch.Generator().manual_seed(self.seed * SEED_STRIDE + number)
            ids, answers = (t[0] for t in self.task.sample(1, generator))
            labels = torch.full_like(ids, IGNORED)
            labels[1:] = ids[1:] if self.everything else answers[:-1]
            yield {"input_ids": ids, "labels": labels, "position_ids": torch.arange(len(ids))}
            number += world

    def fingerprint(self) -> str:
        return f"{self.task} {self.seed} {self.everything}"


@dataclass(frozen=True)
class Answers:
    """What a model answered, at the positions that ask."""

    right: Tensor
    """[B, T] bool."""
    kl: Tensor
    """[B, T], from the teacher, in nats; empty if it was not asked."""


def asked(task: RecallTask, sequences: int) -> tuple[Tensor, Tensor]:
    """Ids and answers [B, T] of sequences that nobody is trained on."""
    return task.sample(sequences, torch.Generator().manual_seed(EVALUATED))


@torch.no_grad()
def answer(
    model: AllMemForCausalLM,
    ids: Tensor,
    answers: Tensor,
    window: WindowConfig | None = None,
    chunk: int | None = None,
    compare: bool = False,
) -> Answers:
    """Let a model answer.

    Args:
        ids, answers: [B, T].
        window, chunk: to read with, in place of its own.
        compare: with its teacher too.
    """
    right, kl = [], []
    for part, expected in zip(ids.split(TOGETHER), answers.split(TOGETHER), strict=True):
        part, expected = part.to(model.device), expected.to(model.device)
        cache = AllMemCache(model.config, window, chunk)
        logits = model(part, past_key_values=cache, use_cache=False).logits
        right.append(((logits.argmax(-1) == expected) & (expected != IGNORED)).cpu())
        if compare:
            told = model(part, full_attention=True).logits.float().log_softmax(-1)
            found = logits.float().log_softmax(-1)
            kl.append((told.exp() * (told - found)).sum(-1).cpu())
    return Answers(torch.cat(right), torch.cat(kl) if kl else torch.empty(0))
