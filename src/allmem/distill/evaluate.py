"""How far a student is from its teacher beyond the window: loss and KL on held-out text.

Three readers of the same text, from the same weights: the teacher (full attention), the window
alone, and the window with its memory. A fourth, as a control, reads its memory and never writes it:
what it gains over the window is a fixed correction that remembers nothing. Positions below the
window tell nothing: there all are equal.

Letters: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from allmem.distill.losses import BLOCK, Head, log_probabilities
from allmem.errors import AllMemError
from allmem.mixers.allmem import AllMemMixer
from allmem.models.modeling import AllMemForCausalLM

__all__ = [
    "Comparison",
    "Score",
    "check_reaches_beyond",
    "compare",
    "head_of",
    "without_memory",
    "without_writing",
]

HEAD_TOLERANCE = 1e-2


@dataclass(frozen=True)
class Score:
    """Means over the positions from W on."""

    loss: float
    """Cross-entropy of the next token, in nats."""
    kl: float
    """KL from the teacher, in nats."""


@dataclass(frozen=True)
class Comparison:
    """The three readers, on the same positions."""

    teacher: Score
    window: Score
    memory: Score
    positions: int
    unwritten: Score | None = None
    """The window with a memory that stays as it began."""

    @property
    def closed(self) -> float:
        """The share of the window's KL that the memory took away; negative if it added to it."""
        return 1 - self.memory.kl / max(self.window.kl, 1e-12)


@contextmanager
def without_memory(model: AllMemForCausalLM) -> Iterator[None]:
    """The window model: what alpha = 0 computes, without computing the memories."""
    memories = [mixed.memory for mixed in model.mixers()]
    for mixed in model.mixers():
        mixed.memory = None
    try:
        yield
    finally:
        for mixed, memory in zip(model.mixers(), memories, strict=True):
            mixed.memory = memory


@contextmanager
def without_writing(model: AllMemForCausalLM) -> Iterator[None]:
    """Inner rates of zero: the memories are read and never written."""
    rates = [
        mixed.memory.unit.eta for mixed in model.mixers() if isinstance(mixed.memory, AllMemMixer)
    ]
    saved = [(rate.weight.detach().clone(), rate.bias.detach().clone()) for rate in rates]
    with torch.no_grad():
        for rate in rates:
            rate.weight.zero_()
            rate.bias.fill_(-torch.inf)
    try:
        yield
    finally:
        with torch.no_grad():
            for rate, (weight, bias) in zip(rates, saved, strict=True):
                rate.weight.copy_(weight)
                rate.bias.copy_(bias)


def head_of(model: AllMemForCausalLM) -> Head:
    """From the last hidden states to logits.

    Raises:
        AllMemError: if the base model does something else to its logits (softcapping, scaling).
    """
    head = model.get_output_embeddings()
    probe = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
    training = model.training
    model.eval()
    with torch.no_grad():
        expected = model(probe, use_cache=False).logits.float()
        found = head(model.hidden_states(probe)).float()
    model.train(training)
    if not (found - expected).norm() <= HEAD_TOLERANCE * expected.norm():
        raise AllMemError(
            f"{type(model.base).__name__} changes its logits after the head (softcapping or "
            "scaling), which distillation does not know; please report the architecture"
        )
    return head


@torch.no_grad()
def compare(
    model: AllMemForCausalLM,
    sequences: Tensor,
    *,
    control: bool = False,
) -> Comparison:
    """Let the readers predict ``sequences`` [B, T] beyond the window.

    Args:
        control: let the one that never writes read too.

    Raises:
        AllMemError: if the sequences are no longer than the window.
    """
    first = model.config.window
    count, length = sequences.shape
    check_reaches_beyond(length, first)
    head = head_of(model)
    training = model.training
    model.eval()
    totals = torch.zeros(4 if control else 3, 2, dtype=torch.float64)
    for ids in sequences.to(model.device).split(1):
        teacher = model.hidden_states(ids, full_attention=True)
        with without_memory(model):
            window = model.hidden_states(ids)
        streams = [teacher, window, model.hidden_states(ids)]
        if control:
            with without_writing(model):
                streams.append(model.hidden_states(ids))
        # The last position predicts a token that is not there.
        readers = [stream[0, first:-1] for stream in streams]
        totals += _sums(readers, ids[0, first + 1 :], head)
    model.train(training)
    positions = count * (length - first - 1)
    scores = [Score(float(loss), float(kl)) for loss, kl in totals / positions]
    return Comparison(scores[0], scores[1], scores[2], positions, scores[3] if control else None)


def _sums(readers: list[Tensor], targets: Tensor, head: Head) -> Tensor:
    """Sums of loss and of KL from the first reader, [readers, 2]; readers [n, D], targets [n]."""
    totals = torch.zeros(len(readers), 2, dtype=torch.float64)
    for begin in range(0, len(targets), BLOCK):
        here = slice(begin, begin + BLOCK)
        expected = log_probabilities(head, readers[0][here])
        weight = expected.exp()
        for i, reader in enumerate(readers):
            found = expected if i == 0 else log_probabilities(head, reader[here])
            loss = -found.gather(1, targets[here, None]).sum()
            kl = (weight * (expected - found)).sum()
            totals[i] += torch.stack([loss, kl]).double().cpu()
    return totals


def check_reaches_beyond(length: int, window: int) -> None:
    """Refuse sequences on which teacher and student see the same.

    Raises:
        AllMemError: if ``length <= window + 1``.
    """
    if length <= window + 1:
        raise AllMemError(
            f"length = {length} does not reach beyond window = {window}: teacher and student see "
            f"the same there, and nothing can be learned; choose a length of at least {2 * window}"
        )
