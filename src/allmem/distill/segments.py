"""Long rows in segments: the gradient of the whole at the memory of one piece.

A segment is a function of its tokens and of the state before it, so it can be read again in the
backward pass from that state alone, which is small. What flows back from a segment into the one
before is the gradient with respect to the state: fast weights, momentum, window, everything.

Letters: R documents as rows, N slots of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from allmem.data.labels import IGNORED
from allmem.layout import Layout
from allmem.models.cache import AllMemCache
from allmem.models.modeling import AllMemForCausalLM

__all__ = ["LossOf", "read_segments", "unpack"]

LossOf = Callable[[Tensor, slice], tuple[Tensor, ...]]
"""Hidden states of a segment [R, n, D] and where it lies, to sums of losses; the first of them is
differentiated."""


def unpack(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Documents packed in rows [B, T] as rows of their own [R, N], with ``attention_mask`` in place
    of ``position_ids``. Documents without a label that counts are left out."""
    starts = batch["position_ids"] == 0
    before = torch.zeros(len(starts), dtype=torch.int64)
    layout = Layout.from_grid(before, None, starts, starts.device)
    rows = {name: layout.gather(t) for name, t in batch.items() if name != "position_ids"}
    rows["attention_mask"] = layout.valid
    rows["labels"] = torch.where(layout.valid, rows["labels"], IGNORED)
    learned = (rows["labels"] != IGNORED).any(1)
    if not bool(learned.any()):
        learned[0] = True
    longest = int(layout.lengths[learned.cpu()].max())
    return {name: tensor[learned, :longest] for name, tensor in rows.items()}


def read_segments(
    model: AllMemForCausalLM,
    batch: dict[str, Tensor],
    cache: AllMemCache,
    segment: int | None,
    loss_of: LossOf,
    truncate: bool = False,
) -> tuple[list[Tensor], AllMemCache]:
    """Read rows [R, N] segment by segment and add up what ``loss_of`` finds.

    Args:
        batch: ``input_ids`` and ``attention_mask``.
        cache: what to begin from, a new one or one with states; not changed.
        segment: tokens per segment; ``None`` for all at once.
        truncate: cut the gradient between segments.

    Returns:
        the sums, and the cache at the end, detached.
    """
    ids, mask = batch["input_ids"], batch["attention_mask"]
    rows, length = ids.shape
    segment = segment or length
    if cache.states is None:
        cache = cache.with_states(model.init_states(rows, ids.device, cache.window, cache.chunk))
    sums: list[Tensor] = []
    for first in range(0, length, segment):
        here = slice(first, min(first + segment, length))
        step = _Segment(model, ids[:, here], mask[:, here], here, cache, loss_of)
        before = _tensors(cache)
        if segment < length and torch.is_grad_enabled():
            found = checkpoint(step, *before, use_reentrant=False)
        else:
            found = step(*before)
        losses, after = found[: -len(before)], found[-len(before) :]
        if truncate:
            after = tuple(tensor.detach() for tensor in after)
        cache = _around(step.after, after)
        sums = [a + b for a, b in zip(sums, losses, strict=True)] if sums else list(losses)
    cache.detach()
    return sums, cache


@dataclass
class _Segment:
    """A segment as a function of the state's tensors alone, which may be called again."""

    model: AllMemForCausalLM
    ids: Tensor
    mask: Tensor
    here: slice
    before: AllMemCache
    loss_of: LossOf
    after: AllMemCache = field(init=False)

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        self.after = _around(self.before, tensors)
        hidden = self.model.hidden_states(self.ids, self.mask, cache=self.after)
        return (*self.loss_of(hidden, self.here), *_tensors(self.after))


def _tensors(cache: AllMemCache) -> tuple[Tensor, ...]:
    return tuple(cache.tensors().values())


def _around(cache: AllMemCache, tensors: Sequence[Tensor]) -> AllMemCache:
    """The same place in the text around other tensors."""
    rest = iter(tensors)
    return cache.with_states(
        [
            state.with_tensors({name: next(rest) for name in state.tensors()})
            for state in cache.states or []
        ]
    )
