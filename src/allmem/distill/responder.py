"""Responses of a student to many prompts at once.

What a response is depends on the weights, the prompt and its number alone: every prompt draws from
a random state of its own, so it does not matter which others it shares a batch with (but for
rounding), and nobody else's random numbers are touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import GenerationConfig

from allmem.batching import left_padded, random_states, sampling_steps
from allmem.distill.responses import Response
from allmem.errors import AllMemError
from allmem.opening import OpenedModel
from allmem.reading import Sampling, stop_ids
from allmem.schema import check_positive

__all__ = ["MAX_NEW_TOKENS", "Responder"]

MAX_NEW_TOKENS = 1024
"""Of a response, unless another limit is given."""


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
        ids, mask = left_padded(prompts)
        states = random_states(self.sampling, numbers, model.device)
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
                logits_processor=sampling_steps(self.sampling, states),
            )
        finally:
            model.generation_config = recommended
            model.train(training)
        return [_until(row, stop) for row in out[:, ids.shape[1] :].tolist()]


def _until(ids: list[int], stop: Sequence[int]) -> Response:
    """A row of generated tokens up to the first that ends it."""
    end = next((i for i, token in enumerate(ids) if token in stop), None)
    return Response(ids, False) if end is None else Response(ids[: end + 1], True)
