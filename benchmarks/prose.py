"""What a model predicts of a text, read in pieces; shared by the benchmarks that read prose."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from allmem.models.cache import AllMemCache
from allmem.models.modeling import AllMemForCausalLM

__all__ = ["losses"]

BLOCK = 512
"""Tokens of a piece."""


@torch.no_grad()
def losses(model: AllMemForCausalLM, ids: Tensor) -> Tensor:
    """Of every token of ids [1, T] but the first, [T - 1], in nats."""
    cache, found = AllMemCache(model.config), []
    for first in range(0, ids.shape[1] - 1, BLOCK):
        piece = ids[:, first : min(first + BLOCK, ids.shape[1] - 1)]
        logits = model(input_ids=piece, past_key_values=cache).logits[0].float()
        following = ids[0, first + 1 : first + 1 + piece.shape[1]]
        found.append(F.cross_entropy(logits, following, reduction="none"))
    return torch.cat(found)
