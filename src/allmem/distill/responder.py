"""Responses of a student to many prompts at once.

What a response is depends on the weights, the prompt and its number alone: every prompt draws from
a random state of its own, so it does not matter which others it shares a batch with (but for
rounding), and nobody else's random numbers are touched.

Letters: B prompts of a batch, T tokens of the longest, V words.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from allmem.distill.responses import Response
from allmem.errors import AllMemError
from allmem.opening import OpenedModel
from allmem.reading import Sampling, stop_ids
from allmem.schema import check_positive

__all__ = ["MAX_NEW_TOKENS", "Responder", "recommended_sampling"]

MAX_NEW_TOKENS = 1024
"""Of a response, unless another limit is given."""


def recommended_sampling(
    model: Any,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    seed: int = 0,
) -> Sampling:
    """What a user chose, else what the model's makers recommend (as the paper does with Qwen3,
    section 4), else samples of the student's own distribution (as GKD, arXiv:2306.13649)."""
    theirs = model.generation_config

    def choose(name: str, own: Any, neutral: Any) -> Any:
        recommended = getattr(theirs, name, None)
        return next(value for value in (own, recommended, neutral) if value is not None)

    return Sampling(
        temperature=choose("temperature", temperature, 1.0),
        top_p=choose("top_p", top_p, 1.0),
        top_k=choose("top_k", top_k, 0),
        seed=seed,
    )


@dataclass(frozen=True)
class Responder:
    """A student and how it answers.

    Args:
        opened: the student; every call uses its weights as they are then.
        end: the token that ends a response, beside those that the model knows.
        sampling: its seed decides all responses.
        max_new_tokens: longest response.

    Raises:
        AllMemError: if the limit is not positive, or the sampling has no seed.
    """

    opened: OpenedModel
    end: int
    sampling: Sampling
    max_new_tokens: int = MAX_NEW_TOKENS

    def __post_init__(self) -> None:
        check_positive(max_new_tokens=self.max_new_tokens)
        if self.sampling.seed is None:
            raise AllMemError("the sampling has no seed; give one, so that responses repeat")

    @property
    def stop(self) -> list[int]:
        """The tokens that end a response."""
        return sorted({self.end, *stop_ids(self.opened.model, self.opened.tokenizer)})

    def __call__(self, prompts: Sequence[Sequence[int]], numbers: Sequence[int]) -> list[Response]:
        """Answer prompts, all in one batch; the student's mode is left as it was.

        Args:
            prompts: the tokens of each.
            numbers: of the prompts: which random numbers each draws.
        """
        model: Any = self.opened.model
        longest = max(map(len, prompts))
        ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        stop = self.stop
        training, recommended = model.training, model.generation_config
        model.eval()
        # Else what the model's makers set besides, such as a penalty, would come in unseen.
        model.generation_config = GenerationConfig(
            do_sample=False,
            max_new_tokens=self.max_new_tokens,
            eos_token_id=stop,
            pad_token_id=stop[0],
        )
        try:
            out = model.generate(
                ids.to(model.device),
                attention_mask=mask.to(model.device),
                past_key_values=self.opened.new_cache(),
                logits_processor=self._processors(numbers, model.device),
            )
        finally:
            model.generation_config = recommended
            model.train(training)
        return [_until(row, stop) for row in out[:, longest:].tolist()]

    def _processors(self, numbers: Sequence[int], device: torch.device) -> LogitsProcessorList:
        """What makes the likeliest token a sample."""
        how = self.sampling
        if how.temperature == 0:
            return LogitsProcessorList()
        steps = LogitsProcessorList([TemperatureLogitsWarper(how.temperature)])
        if how.top_k:
            steps.append(TopKLogitsWarper(how.top_k))
        if how.top_p < 1:
            steps.append(TopPLogitsWarper(how.top_p))
        generators = []
        for number in numbers:
            drawn = random.Random(f"{how.seed} response {number}").getrandbits(63)
            generators.append(torch.Generator(device).manual_seed(drawn))
        steps.append(_GumbelNoise(generators))
        return steps


class _GumbelNoise(LogitsProcessor):
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


def _until(ids: list[int], stop: Sequence[int]) -> Response:
    """A row of generated tokens up to the first that ends it."""
    end = next((i for i, token in enumerate(ids) if token in stop), None)
    return Response(ids, False) if end is None else Response(ids[: end + 1], True)
