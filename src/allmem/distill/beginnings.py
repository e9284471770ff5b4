"""Where fast weights begin, so that a memory goes on beyond the length it was trained at.

A memory that was only ever trained from F_0, for a few thousand tokens, has never met the state
that it reaches after a million. Two remedies of Buitrago and Gu (2025): begin from the state in
which another text ended, or from a noisy one. Ours for this memory, not the paper's.
"""

from __future__ import annotations

import dataclasses
import random

import torch
from torch import Tensor

from allmem.distill.config import DistillConfig
from allmem.models.cache import AllMemCache
from allmem.models.modeling import AllMemForCausalLM

__all__ = ["Beginnings"]


class Beginnings:
    """The states that steps begin from."""

    def __init__(self, model: AllMemForCausalLM, config: DistillConfig) -> None:
        self.model, self.config = model, config
        self.passed: AllMemCache | None = None
        """Where the last step ended."""

    @torch.no_grad()
    def begin(self, cache: AllMemCache, rows: int, step: int) -> AllMemCache:
        """What ``rows`` documents begin from at a step, around the sizes of a new cache.

        The same step always begins in the same way; only what it was passed may differ.
        """
        config = self.config
        if random.Random(f"{config.seed} state {step}").random() >= config.state_share:
            return cache
        if config.state_init == "noise":
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        elif self.passed is None:
            return cache
        model = self.model
        states = []
        for i, new in enumerate(model.init_states(rows, model.device, cache.window, cache.chunk)):
            memory = new.memory
            if memory is not None and config.state_init == "noise":
                memory = memory.map(lambda t: _noisy(t, config.state_noise, generator))
            elif memory is not None:
                assert self.passed is not None
                assert self.passed.states is not None
                old = self.passed.states[i].memory
                mixer = model.mixers()[i].memory
                assert old is not None
                assert mixer is not None
                memory = mixer.carry(old.select(torch.arange(rows) % len(self.passed.seen)), memory)
            states.append(dataclasses.replace(new, memory=memory))
        return cache.with_states(states)

    def tensors(self) -> dict[str, Tensor]:
        """The memories that the next step may begin from, by name: for checkpoints."""
        if self.passed is None:
            return {}
        return {name: t for name, t in self.passed.tensors().items() if ".memory." in name}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take over what ``tensors`` gave."""
        if not tensors:
            return
        model = self.model
        rows = len(next(iter(tensors.values())))
        cache = AllMemCache(model.config)
        cache.seen = torch.zeros(rows, dtype=torch.int64)
        cache.states = [
            state.with_tensors(
                {
                    name: tensors.get(f"layers.{i}.{name}", like).to(like)
                    for name, like in state.tensors().items()
                }
            )
            for i, state in enumerate(model.init_states(rows, model.device))
        ]
        self.passed = cache


def _noisy(tensor: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    """With noise of ``scale`` times the size of each row; what is zero stays zero."""
    size = tensor.square().mean(-1, keepdim=True).sqrt()
    noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
    return tensor + scale * size * noise.to(tensor.device)
