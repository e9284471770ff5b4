"""Which layers need full attention, and which a memory: measured by converting them one at a time.

All readers are the same weights; a reader is the set of layers that keep full attention.

    alone      layer i converted, all others full: its damage alone
    kept       the K layers with the largest damage stay full
    restored   the kept layers and layer i full, all others converted: how much of the damage that
               is left layer i takes away, which is the most that a memory in it could

Damage is the KL from the full model at the positions that count, those beyond the window. Rows are
read one at a time, by one reader after another, so memory does not grow with the number of layers.

How sure a ranking is tells a bootstrap over stretches of a text: the same stretches for all layers,
since they are compared on the same tokens. It knows nothing of other texts.

Letters: n positions that count, D hidden size, B stretches of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from allmem.data.labels import IGNORED
from allmem.distill.evaluate import check_reaches_beyond, head_of
from allmem.distill.rows import Row, counted
from allmem.distill.targets import BLOCK, Head, log_probabilities
from allmem.errors import AllMemError
from allmem.mixers.attention import FullMixer
from allmem.models.configuration import LOCAL
from allmem.models.modeling import AllMemForCausalLM

__all__ = ["Damage", "Placement", "candidates", "pattern_of", "place"]

STRETCH, STRETCHES, RESAMPLES = 32, 16, 1000
"""Positions that are resampled together, since what a window loses lasts for more than a token; but
so few that there are some stretches to draw from."""

Readers = Callable[[int, int, str], None]
"""Called with how many readings are done, of how many, and what was read last."""


@dataclass(frozen=True)
class Damage:
    """What a reader says otherwise than the full model, a mean over the positions that count."""

    kl: float
    """From the full model, in nats."""
    low: float
    """Of the 95 % interval of ``kl``; so is ``high``."""
    high: float
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
    sure: dict[int, float]
    """Of every layer in ``keep`` or ``memories`` the share of resamples that choose it too; of a
    memory given the layers that are kept."""


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
    converted = examiner.read(frozenset(), "every layer converted")
    alone = {i: examiner.read(everything - {i}, f"layer {i} alone") for i in layers}
    ranked = sorted(layers, key=lambda i: (-alone[i].damage.kl, i))
    kept = frozenset(ranked[:keep])
    left = examiner.read(kept, "the kept layers full") if kept else converted
    restored = {
        i: examiner.read(kept | {i}, f"layer {i} restored") for i in layers if i not in kept
    }
    order = sorted(restored, key=lambda i: (restored[i].damage.kl, i))
    chosen = order[:wanted]
    sure = _chosen({i: -one.resamples for i, one in alone.items()}, ranked[:keep])
    sure |= _chosen({i: one.resamples for i, one in restored.items()}, chosen)
    return Placement(
        examiner.full,
        converted.damage,
        {i: alone[i].damage for i in ranked},
        sorted(kept),
        left.damage,
        {i: restored[i].damage for i in order},
        sorted(chosen),
        examiner.positions,
        sure,
    )


def _chosen(resamples: dict[int, Tensor], layers: Sequence[int]) -> dict[int, float]:
    """How often each of these layers is among as many with the least."""
    names = list(resamples)
    values = torch.stack([resamples[i] for i in names])
    least = values.topk(len(layers), dim=0, largest=False).indices
    return {i: float((least == names.index(i)).any(0).float().mean()) for i in layers}


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


@dataclass(frozen=True)
class _Reading:
    """What came of one reader."""

    damage: Damage
    resamples: Tensor
    """KL of every resample, [RESAMPLES]; of all readers of the same stretches."""


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
        # The stretch of every position, [n]; none reaches over the end of a row.
        counts = [int((own != IGNORED).sum()) for own in labels]
        stretch = max(1, min(STRETCH, self.positions // STRETCHES))
        places: list[Tensor] = []
        for count in counts:
            first = 1 + int(places[-1][-1]) if places else 0
            if count:
                places.append(first + torch.arange(count) // stretch)
        self.stretch = torch.cat(places)
        self.sizes = self.stretch.bincount().double()
        drawn = torch.randint(
            len(self.sizes),
            (RESAMPLES, len(self.sizes)),
            generator=torch.Generator().manual_seed(0),
        )
        self.draws = torch.stack([one.bincount(minlength=len(self.sizes)) for one in drawn])
        self.head = head_of(model)
        self.teacher = self._read(full_attention=True)
        self.targets = torch.cat([own[own != IGNORED] for own in labels]).to(model.device)
        self.done = 0

    @property
    def full(self) -> Damage:
        """Of the full model: none, but a loss."""
        return self._compared(self.teacher).damage

    def read(self, full: Collection[int], what: str) -> _Reading:
        """By the reader in which these layers keep full attention."""
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

    def _compared(self, reader: Tensor) -> _Reading:
        kl, loss, right = _by_position(self.teacher, reader, self.targets, self.head)
        sums = torch.zeros_like(self.sizes).index_add_(0, self.stretch, kl)
        draws = self.draws.double()
        resamples = (draws @ sums) / (draws @ self.sizes)
        low, high = resamples.quantile(torch.tensor([0.025, 0.975]).double()).tolist()
        means = (float(values.mean()) for values in (loss, right))
        return _Reading(Damage(float(kl.mean()), low, high, *means), resamples)


def _by_position(teacher: Tensor, reader: Tensor, targets: Tensor, head: Head) -> Tensor:
    """KL, loss and whether the answer is right, [3, n]; teacher and reader [n, D], targets [n]."""
    found = []
    for begin in range(0, len(targets), BLOCK):
        here = slice(begin, begin + BLOCK)
        told, said = (log_probabilities(head, hidden[here]) for hidden in (teacher, reader))
        kl = (told.exp() * (told - said)).sum(-1)
        loss = -said.gather(1, targets[here, None])[:, 0]
        right = said.argmax(-1) == targets[here]
        found.append(torch.stack([kl.double(), loss.double(), right.double()]).cpu())
    return torch.cat(found, 1)


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
