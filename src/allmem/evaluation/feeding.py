"""A batch of texts that a model reads in pieces, converted or not, in one way.

A converted model keeps an ``AllMemCache``, a plain one the keys and values of transformers'
``DynamicCache``. Padding may stand before a text, and between two pieces of it where every layer
sees everything (``allows_holes``).

Letters: B texts, T slots of a piece, N slots so far, V words.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from allmem.models.cache import AllMemCache
from allmem.models.rope_scaling import RopeScaling
from allmem.opening import OpenedModel

__all__ = [
    "Feed",
    "PlainModel",
    "Source",
    "Variant",
    "allows_holes",
    "allows_padding",
    "layer_bytes",
]

PIECE = 2048
"""Slots of a batch that a plain model reads in one call: neither activations nor masks grow with
the square of the text. A converted model cuts its input by itself."""

Variant = Callable[[Any], contextlib.AbstractContextManager[None]]
"""What is done to a model while it reads: ``without_memory``, say."""


@dataclass
class PlainModel:
    """A model as it is, not converted, and its tokenizer."""

    model: PreTrainedModel
    tokenizer: Any
    scaling: RopeScaling | None = None
    """Of its positions, if they are not as trained."""

    def new_cache(self) -> DynamicCache:
        """Before the first token."""
        return DynamicCache(config=self.model.config)

    @property
    def sees(self) -> int:
        """0: everything."""
        return 0


Source = OpenedModel | PlainModel


def allows_padding(opened: Source) -> bool:
    """Whether a text may be read in several calls, beside others that are longer: not so with
    recurrent layers, which padding would change."""
    if isinstance(opened, OpenedModel):
        return True
    kinds = {type(layer) for layer in opened.new_cache().layers}
    return kinds <= {DynamicLayer, DynamicSlidingWindowLayer}


def allows_holes(opened: Source) -> bool:
    """Whether padding between two pieces of a text changes nothing: not so with layers that see
    a number of slots, whatever stands in them."""
    if isinstance(opened, OpenedModel):
        return True
    return {type(layer) for layer in opened.new_cache().layers} <= {DynamicLayer}


class Feed:
    """What a batch has read so far.

    Args:
        opened: the model.
        variant: entered around every reading.
    """

    def __init__(self, opened: Source, variant: Variant | None = None) -> None:
        self.model: Any = opened.model
        self.cache: Any = opened.new_cache()
        self.variant = variant or (lambda model: contextlib.nullcontext())
        self.mask: Tensor | None = None
        """[B, N] on the model's device, for plain models."""
        self.last: Tensor | None = None
        """[B, V], logits of what comes next."""
        self.slots = 0
        """N, padding included."""

    @torch.no_grad()
    def read(self, ids: Tensor, mask: Tensor | None = None, keep: int = 1) -> Tensor:
        """Go on reading.

        Args:
            ids: [B, T].
            mask: [B, T] with 0 for padding; ``None`` for none.
            keep: slots at the end whose logits are wanted.

        Returns:
            [B, keep, V] logits, as the model gives them.
        """
        length = ids.shape[1]
        ours = isinstance(self.cache, AllMemCache)
        piece = length if ours else max(1, PIECE // ids.shape[0])
        kept = []
        with self.variant(self.model):
            for first in range(0, length, piece):
                last = min(first + piece, length)
                wanted = last - max(first, min(length - keep, last))
                here = slice(first, last)
                logits = self._call(ids[:, here], None if mask is None else mask[:, here], wanted)
                if wanted:
                    kept.append(logits[:, logits.shape[1] - wanted :])
        logits = torch.cat(kept, dim=1)
        # A copy: a view would keep all of them.
        self.last = logits[:, -1].clone()
        self.slots += length
        return logits

    def _call(self, ids: Tensor, mask: Tensor | None, keep: int) -> Tensor:
        device = self.model.device
        given: dict[str, Any] = {"input_ids": ids.to(device)}
        if _keeps_logits(self.model):
            # 0 would mean all.
            given["logits_to_keep"] = max(keep, 1)
        mask = torch.ones_like(ids) if mask is None else mask
        if isinstance(self.cache, AllMemCache):
            given["attention_mask"] = mask
        else:
            mask = mask.to(device)
            self.mask = mask if self.mask is None else torch.cat([self.mask, mask], dim=1)
            if not bool(self.mask.all()):
                places = self.mask.cumsum(1) - 1
                given["attention_mask"] = self.mask
                given["position_ids"] = places[:, -ids.shape[1] :].clamp_min(0)
        return self.model(**given, past_key_values=self.cache, use_cache=True).logits

    def select(self, rows: Sequence[int]) -> None:
        """Keep these texts of the batch, in this order; one may be taken several times."""
        index = torch.tensor(list(rows))
        if self.last is not None:
            self.last = self.last[index.to(self.last.device)]
        if isinstance(self.cache, AllMemCache):
            self.cache.batch_select_indices(index)
            return
        self.cache.batch_select_indices(index.to(self.model.device))
        if self.mask is not None:
            self.mask = self.mask[index.to(self.mask.device)]

    def fork(self) -> Self:
        """An independent copy: the same past, two futures."""
        twin = copy.copy(self)
        is_ours = isinstance(self.cache, AllMemCache)
        twin.cache = self.cache.fork() if is_ours else copy.deepcopy(self.cache)
        return twin

    @property
    def nbytes(self) -> int:
        """Bytes of all that is remembered."""
        if isinstance(self.cache, AllMemCache):
            return self.cache.nbytes
        return sum(map(layer_bytes, self.cache.layers))


def layer_bytes(layer: Any) -> int:
    """Bytes of what a layer of transformers' cache remembers."""
    kept = [value for value in vars(layer).values() if isinstance(value, Tensor)]
    # The others are counters.
    return sum(value.nbytes for value in kept if value.dim() > 1)


def _keeps_logits(model: Any) -> bool:
    return "logits_to_keep" in inspect.signature(model.forward).parameters
