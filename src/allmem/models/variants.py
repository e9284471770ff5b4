"""What a model is without its memory, or without writing into it: the readers that a memory is
compared with. Each is a context manager that leaves the model as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from allmem.mixers.allmem import AllMemMixer
from allmem.models.modeling import AllMemForCausalLM

__all__ = ["without_memory", "without_writing"]


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
