"""How far a student is from its teacher beyond the window: loss and KL on held-out text.

Three readers of the same text, from the same weights: the teacher (full attention), the window
alone, and the window with its memory. A fourth, as a control, reads its memory and never writes it:
what it gains over the window is a fixed correction that remembers nothing. Positions below the
window tell nothing: there all are equal.

Letters: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from allmem.config import WindowConfig
from allmem.data.labels import IGNORED
from allmem.distill.rows import Row, counted
from allmem.distill.targets import BLOCK, Head, log_probabilities
from allmem.errors import AllMemError
from allmem.models.cache import AllMemCache
from allmem.models.modeling import AllMemForCausalLM
from allmem.models.variants import without_memory, without_writing

__all__ = [
    "Comparison",
    "Score",
    "check_reaches_beyond",
    "compare",
    "head_of",
]

HEAD_TOLERANCE = 1e-2


@dataclass(frozen=True)
class Score:
    """Means over the positions that count, from W on unless asked otherwise."""

    loss: float
    """Cross-entropy of the next token, in nats."""
    kl: float
    """KL from the teacher, in nats."""
    accuracy: float = 0.0
    """Share of the positions at which the likeliest token is the right one."""


@dataclass(frozen=True)
class Comparison:
    """The three readers, on the same positions."""

    teacher: Score
    window: Score
    memory: Score
    positions: int
    unwritten: Score | None = None
    """The window with a memory that stays as it began."""
    beyond: bool = True
    """Whether only positions beyond the window count."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Comparison:
        """From what ``dataclasses.asdict`` gave."""
        names = ("teacher", "window", "memory", "unwritten")
        scores = {n: None if values.get(n) is None else Score(**values[n]) for n in names}
        return cls(**{**values, **scores})

    @property
    def closed(self) -> float:
        """The share of the window's KL that the memory took away; negative if it added to it."""
        return 1 - self.memory.kl / max(self.window.kl, 1e-12)


def head_of(model: PreTrainedModel) -> Head:
    """From the last hidden states of a converted or a plain model to logits.

    Raises:
        AllMemError: if the base model does something else to its logits (softcapping, scaling).
    """
    head = model.get_output_embeddings()
    probe = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
    training = model.training
    model.eval()
    with torch.no_grad():
        expected = model(probe, use_cache=False).logits.float()
        if isinstance(model, AllMemForCausalLM):
            hidden = model.hidden_states(probe)
        else:
            hidden = model.base_model(probe, use_cache=False).last_hidden_state
        found = head(hidden).float()
    model.train(training)
    if not (found - expected).norm() <= HEAD_TOLERANCE * expected.norm():
        name = type(getattr(model, "base", model)).__name__
        raise AllMemError(
            f"{name} changes its logits after the head (softcapping or scaling), which "
            "distillation does not know; please report the architecture"
        )
    return head


@torch.no_grad()
def compare(
    model: AllMemForCausalLM,
    rows: Sequence[Row],
    *,
    control: bool = False,
    beyond: bool = True,
    window: WindowConfig | None = None,
) -> Comparison:
    """Let the readers predict what is learned of ``rows``.

    Args:
        control: let the one that never writes read too.
        beyond: count only what is predicted from beyond the window.
        window: to read with, in place of the model's own.

    Raises:
        AllMemError: if no row has anything to predict there.
    """
    first = (window or model.config.window_config).window if beyond else 0
    check_reaches_beyond(max(len(row["input_ids"]) for row in rows), first)
    head = head_of(model)
    training = model.training
    model.eval()
    totals = torch.zeros(4 if control else 3, 3, dtype=torch.float64)
    positions = 0

    def read(ids: Tensor, places: Tensor, full_attention: bool = False) -> Tensor:
        cache = None if window is None else AllMemCache(model.config, window)
        return model.hidden_states(
            ids, position_ids=places, full_attention=full_attention, cache=cache
        )

    for row in rows:
        ids, places = (row[name][None].to(model.device) for name in ("input_ids", "position_ids"))
        labels = counted(row["labels"], row["position_ids"], first)[1:].to(model.device)
        counts = labels != IGNORED
        if not bool(counts.any()):
            continue
        teacher = read(ids, places, full_attention=True)
        with without_memory(model):
            alone = read(ids, places)
        streams = [teacher, alone, read(ids, places)]
        if control:
            with without_writing(model):
                streams.append(read(ids, places))
        totals += _sums([stream[0, :-1][counts] for stream in streams], labels[counts], head)
        positions += int(counts.sum())
    model.train(training)
    if positions == 0:
        raise AllMemError(
            f"no held-out row has a learned token beyond position {first} (the window, unless "
            "positions = all); give longer ones"
        )
    scores = [Score(*means) for means in (totals / positions).tolist()]
    unwritten = scores[3] if control else None
    return Comparison(scores[0], scores[1], scores[2], positions, unwritten, beyond)


def _sums(readers: list[Tensor], targets: Tensor, head: Head) -> Tensor:
    """Sums of loss, of KL from the first reader, and of right answers, [readers, 3]; readers
    [n, D], targets [n]."""
    totals = torch.zeros(len(readers), 3, dtype=torch.float64)
    for begin in range(0, len(targets), BLOCK):
        here = slice(begin, begin + BLOCK)
        expected = log_probabilities(head, readers[0][here])
        weight = expected.exp()
        for i, reader in enumerate(readers):
            found = expected if i == 0 else log_probabilities(head, reader[here])
            loss = -found.gather(1, targets[here, None]).sum()
            kl = (weight * (expected - found)).sum()
            right = (found.argmax(-1) == targets[here]).sum()
            totals[i] += torch.stack([loss, kl, right]).double().cpu()
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
