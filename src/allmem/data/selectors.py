"""Which documents need a long memory: those that the teacher predicts better than its window can.

The full teacher and the same weights with the window alone read a document; what the window loses
beyond its own length is what a memory could bring. Training on the documents that lose most spends
tokens where there is something to learn.

The one module of ``data`` that runs models; the rest of the package does not import it.

Letters: T tokens, D hidden size, n positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from allmem.distill.evaluate import head_of
from allmem.distill.targets import BLOCK, Head, log_probabilities
from allmem.errors import AllMemError
from allmem.models.modeling import AllMemForCausalLM
from allmem.models.variants import without_memory

__all__ = ["WindowLoss", "rank_documents", "window_loss"]


@dataclass(frozen=True)
class WindowLoss:
    """What a document loses when only its window is seen."""

    number: int
    """Of the document."""
    full: float
    """Cross-entropy of the teacher beyond the window, in nats per token."""
    window: float
    """The same with the window alone."""
    positions: int
    """Tokens that were predicted."""

    @property
    def gain(self) -> float:
        """Nats per token that the text beyond the window is worth."""
        return self.window - self.full

    @property
    def ratio(self) -> float:
        """Perplexity with the window over perplexity of the teacher."""
        return math.exp(self.gain)


@torch.no_grad()
def window_loss(
    model: AllMemForCausalLM,
    ids: Tensor,
    number: int = 0,
    learned: Tensor | None = None,
    head: Head | None = None,
) -> WindowLoss:
    """Compare the two readers on one document.

    Args:
        model: converted, with any mixers; its memories are left out. Its window decides.
        ids: [T]
        learned: [T] bool, count only these tokens; ``None`` for all.
        head: of the model, where it is known already (``allmem.distill.evaluate.head_of``).

    Raises:
        AllMemError: if no token that counts stands beyond the window.
    """
    first = model.config.window
    # Token t is predicted at position t - 1; up to W tokens both readers see the same.
    counts = torch.arange(1, len(ids)) > first
    if learned is not None:
        counts &= learned[1:].cpu().bool()
    places = counts.nonzero()[:, 0]
    if not len(places):
        raise AllMemError(
            f"document {number} has {len(ids)} tokens, none of which is predicted from beyond the "
            f"window of {first}; choose longer documents or a smaller window"
        )
    head = head or head_of(model)
    training = model.training
    model.eval()
    row = ids[None].to(model.device)
    try:
        full = model.hidden_states(row, full_attention=True)[0]
        with without_memory(model):
            window = model.hidden_states(row)[0]
    finally:
        model.train(training)
    targets = row[0, 1:][places]
    return WindowLoss(
        number,
        full=_mean_loss(head, full[places], targets),
        window=_mean_loss(head, window[places], targets),
        positions=len(places),
    )


def _mean_loss(head: Head, hidden: Tensor, targets: Tensor) -> float:
    """Mean cross-entropy; hidden [n, D], targets [n]."""
    total = 0.0
    for begin in range(0, len(targets), BLOCK):
        here = slice(begin, begin + BLOCK)
        found = log_probabilities(head, hidden[here]).gather(1, targets[here, None])
        total -= float(found.double().sum())
    return total / len(targets)


def rank_documents(
    model: AllMemForCausalLM, documents: Iterable[Tensor], keep: int | None = None
) -> list[WindowLoss]:
    """Documents in order of what the text beyond the window is worth, the most first.

    Documents that are too short to tell are left out. Only the losses are held in memory.

    Args:
        documents: token ids [T] each.
        keep: return so many at most.
    """
    head = head_of(model)

    def losses() -> Iterator[WindowLoss]:
        for number, ids in enumerate(documents):
            if len(ids) > model.config.window + 1:
                yield window_loss(model, ids, number, head=head)

    ranked: Sequence[WindowLoss] = sorted(losses(), key=lambda one: (-one.gain, one.number))
    return list(ranked[:keep])
