"""Several prompts as one batch: how they are padded, and how each draws its tokens.

What is drawn for a prompt depends on its own number alone, not on which others it shares a batch
with.

Letters: B prompts of a batch, T tokens of the longest, V words.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from allmem.reading import Sampling

__all__ = ["GumbelNoise", "left_padded", "own_seed", "random_states", "sampling_steps"]


def left_padded(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids and mask, [B, T] int64 on the CPU, of prompts that end together."""
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return ids, mask


def random_states(
    sampling: Sampling, numbers: Sequence[int], device: torch.device
) -> list[torch.Generator]:
    """A random state for every prompt of a batch.

    Args:
        sampling: its seed decides everything that is drawn.
        numbers: of the prompts.
    """
    return [torch.Generator(device).manual_seed(own_seed(sampling, n)) for n in numbers]


def own_seed(sampling: Sampling, number: int) -> int:
    """Of the prompt of that number: what it draws does not depend on the others."""
    return random.Random(f"{sampling.seed} response {number}").getrandbits(63)


def sampling_steps(sampling: Sampling, states: Sequence[torch.Generator]) -> LogitsProcessorList:
    """What makes the likeliest token a sample, drawn from a random state for every row."""
    if sampling.temperature == 0:
        return LogitsProcessorList()
    steps = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        steps.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        steps.append(TopPLogitsWarper(sampling.top_p))
    steps.append(GumbelNoise(states))
    return steps


class GumbelNoise(LogitsProcessor):
    """Adds Gumbel noise to the logits of every row, after which the largest one is a sample of
    their softmax (the Gumbel-max trick)."""

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self.generators = generators

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """scores: [B, V]"""
        noise = torch.empty_like(scores)
        for row, generator in zip(noise, self.generators, strict=True):
            row.exponential_(generator=generator)
        return scores - noise.clamp_min(torch.finfo(noise.dtype).tiny).log()
