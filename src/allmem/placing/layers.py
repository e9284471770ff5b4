"""Which layers need full attention, and which a memory: measured by converting them one at a time.

All readers are the same weights; a reader is the set of layers that keep full attention.

    alone      layer i converted, all others full: its damage alone
    kept       the K layers with the largest damage stay full
    restored   the kept layers and layer i full, all others converted: how much of the damage that
               is left layer i takes away, which is the most that a memory in it could

Damage is the KL from the full model at the positions that count, those beyond the window. Rows are
read one at a time, by one reader after another, so memory does not grow with the number of layers.

Letters: n positions that count, D hidden size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from allmem.data.stream import IGNORED
from allmem.distill.evaluate import check_reaches_beyond, head_of
from allmem.distill.rows import Row, counted
from allmem.distill.targets import BLOCK, Head, log_probabilities
from allmem.errors import AllMemError
from allmem.mixers.attention import FullMixer
from allmem.models.configuration import LOCAL
from allmem.models.modeling import AllMemForCausalLM

__all__ = ["Damage", "Placement", "candidates", "pattern_of", "place"]

Readers = Callable[[int, int, str], None]
"""Called with how many readings are done, of how many, and what was read last."""


@dataclass(frozen=True)
class Damage:
    """What a reader says otherwise than the full model, a mean over the positions that count."""

    kl: float
    """From the full model, in nats."""
    loss: float
    """Cross-entropy of the tokens that are learned, in nats; not less the full model's."""
    right: float
    """Share of them that are the likeliest."""


@dataclass(frozen=True)
class Placement:
    """What was found."""

    full: Damage
    """The full model: no damage, its loss."""
    converted: Damage
    """Every candidate converted."""
    alone: dict[int, Damage]
    """By layer, the largest damage first."""
    keep: list[int]
    """The K layers that need full attention most, in their order."""
    kept: Damage
    """With these alone full."""
    restored: dict[int, Damage]
    """By layer, the smallest damage that is left first."""
    memories: list[int]
    """The layers in which a memory could do most, in their order."""
    positions: int


def candidates(model: AllMemForCausalLM) -> list[int]:
    """The layers that conversion changes: not those that were local already."""
    return [i for i, name in enumerate(model.config.layer_names) if name != LOCAL]


@torch.no_grad()
def place(
    model: AllMemForCausalLM,
    rows: Sequence[Row],
    keep: int,
    memories: int | None = None,
    on_reading: Readers | None = None,
) -> Placement:
    """Rank a model's layers.

    Args:
        model: converted in every layer, without trained memories.
        rows: what is read; what is learned of it beyond the window counts.
        keep: K, layers to keep full.
        memories: layers to propose for a memory; ``None`` for as many.

    Raises:
        AllMemError: if K is not below the number of layers, or nothing counts.
    """
    layers = candidates(model)
    if not 0 <= keep < len(layers):
        raise AllMemError(
            f"keep = {keep} must lie between 0 and {len(layers) - 1}: the model has {len(layers)} "
            "layers that a window changes"
        )
    wanted = max(1, keep) if memories is None else memories
    if not 0 <= wanted <= len(layers) - keep:
        raise AllMemError(
            f"memories = {wanted} must lie between 0 and {len(layers) - keep}, the layers that are "
            "not kept full"
        )
    examiner = _Examiner(model, rows, on_reading, 1 + 2 * len(layers) - keep + bool(keep))
    everything = frozenset(layers)
    converted = examiner.damage(frozenset(), "every layer converted")
    alone = {i: examiner.damage(everything - {i}, f"layer {i} alone") for i in layers}
    ranked = sorted(layers, key=lambda i: (-alone[i].kl, i))
    kept = frozenset(ranked[:keep])
    left = examiner.damage(kept, "the kept layers full") if kept else converted
    restored = {
        i: examiner.damage(kept | {i}, f"layer {i} restored") for i in layers if i not in kept
    }
    order = sorted(restored, key=lambda i: (restored[i].kl, i))
    return Placement(
        examiner.full,
        converted,
        {i: alone[i] for i in ranked},
        sorted(kept),
        left,
        {i: restored[i] for i in order},
        sorted(order[:wanted]),
        examiner.positions,
    )


def pattern_of(layers: int, memories: Collection[int], mixer: str = "allmem") -> str:
    """A pattern for ``allmem convert --mixers`` that has a memory in these layers and the window in
    all others: ``window*8,allmem,window*3``."""
    names = [mixer if i in memories else "window" for i in range(layers)]
    runs: list[list[Any]] = []
    for name in names:
        if runs and runs[-1][0] == name:
            runs[-1][1] += 1
        else:
            runs.append([name, 1])
    return ",".join(name if count == 1 else f"{name}*{count}" for name, count in runs)


class _Examiner:
    """Lets one reader after another read all rows, and compares each with the full model, of which
    the hidden states at the positions that count are kept: [n, D] of all rows."""

    def __init__(
        self,
        model: AllMemForCausalLM,
        rows: Sequence[Row],
        on_reading: Readers | None,
        readings: int,
    ) -> None:
        self.model, self.readings, self.on_reading = model, readings, on_reading
        first = model.config.window
        check_reaches_beyond(max(len(row["input_ids"]) for row in rows), first)
        labels = [counted(row["labels"], row["position_ids"], first)[1:] for row in rows]
        self.rows = list(zip(rows, labels, strict=True))
        self.positions = sum(int((own != IGNORED).sum()) for own in labels)
        if self.positions == 0:
            raise AllMemError(
                f"no row has a learned token beyond the window of {first}; give longer ones"
            )
        self.head = head_of(model)
        self.teacher = self._read(full_attention=True)
        self.targets = torch.cat([own[own != IGNORED] for own in labels]).to(model.device)
        self.done = 0

    @property
    def full(self) -> Damage:
        """Of the full model: none, but a loss."""
        return self._compared(self.teacher)

    def damage(self, full: Collection[int], what: str) -> Damage:
        """Of the reader in which these layers keep full attention."""
        with _full(self.model, full):
            found = self._compared(self._read())
        self.done += 1
        if self.on_reading is not None:
            self.on_reading(self.done, self.readings, what)
        return found

    def _read(self, full_attention: bool = False) -> Tensor:
        """[n, D] at the positions that count."""
        model, device = self.model, self.model.device
        training = model.training
        model.eval()
        kept = []
        for row, labels in self.rows:
            ids, places = (row[n][None].to(device) for n in ("input_ids", "position_ids"))
            hidden = model.hidden_states(ids, position_ids=places, full_attention=full_attention)
            kept.append(hidden[0, :-1][(labels != IGNORED).to(device)])
        model.train(training)
        return torch.cat(kept)

    def _compared(self, reader: Tensor) -> Damage:
        totals = _sums(self.teacher, reader, self.targets, self.head)
        return Damage(*(totals / self.positions).tolist())


def _sums(teacher: Tensor, reader: Tensor, targets: Tensor, head: Head) -> Tensor:
    """Sums of KL, loss and right answers, [3]; teacher and reader [n, D], targets [n]."""
    totals = torch.zeros(3, dtype=torch.float64)
    for begin in range(0, len(targets), BLOCK):
        here = slice(begin, begin + BLOCK)
        told, found = (log_probabilities(head, hidden[here]) for hidden in (teacher, reader))
        kl = (told.exp() * (told - found)).sum()
        loss = -found.gather(1, targets[here, None]).sum()
        right = (found.argmax(-1) == targets[here]).sum()
        totals += torch.stack([kl, loss, right]).double().cpu()
    return totals


@contextlib.contextmanager
def _full(model: AllMemForCausalLM, layers: Collection[int]) -> Iterator[None]:
    """These layers with the attention that they had before conversion."""
    changed = [mixed for mixed in model.mixers() if mixed.layer in layers]
    before = [mixed.attention for mixed in changed]
    for mixed in changed:
        attention = mixed.attention
        mixed.attention = FullMixer(attention.core, attention.shape, attention.rotary)
    try:
        yield
    finally:
        for mixed, attention in zip(changed, before, strict=True):
            mixed.attention = attention
