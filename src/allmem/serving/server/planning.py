"""From a request to what the engine is asked: the answers it wants, each with its options.

Sampling options that a client leaves out are what the model's makers recommend, else OpenAI's
(temperature 1 and no cut).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from allmem.reading import Detokenizer
from allmem.serving.engine import Engine, GenerationRequest
from allmem.serving.opening import ServedModel
from allmem.serving.sampling import SamplingParams
from allmem.serving.server.answer import AnswerText
from allmem.serving.server.errors import ApiError
from allmem.serving.server.limits import Limits
from allmem.serving.server.requests import GenerationFields
from allmem.serving.server.stops import StopStrings

__all__ = ["Answer", "longest_prompt", "plan"]

OPTIONS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
)


@dataclass(frozen=True)
class Answer:
    """An answer that is wanted."""

    request: GenerationRequest
    text: AnswerText


def plan(
    model: ServedModel,
    limits: Limits,
    asked: GenerationFields,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    logprobs: int | None,
    thinking: bool = False,
    continued: bool = True,
) -> list[Answer]:
    """The ``n`` answers to each prompt, in the order of the prompts.

    Args:
        logprobs: see ``GenerationRequest``.
        continued: whether answers go on with a text, so that their first space counts.

    Raises:
        AllMemError: if it is more than the limits allow.
    """
    if asked.stream_options and not asked.stream:
        raise ApiError("stream_options are for answers with stream: true", param="stream_options")
    n = asked.n or 1
    _check(limits, model.engine, prompts, n, max_tokens)
    stop = frozenset() if asked.ignore_eos else model.stop
    stops = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
    answers = []
    for prompt in prompts:
        for number in range(n):
            request = GenerationRequest(
                tuple(prompt),
                max_tokens,
                _sampling(asked, model.sampling[thinking], number),
                stop | frozenset(asked.stop_token_ids or ()),
                logprobs,
            )
            detokenizer = Detokenizer(model.tokenizer, prompt if continued else ())
            answers.append(Answer(request, AnswerText(detokenizer, StopStrings(stops))))
    return answers


def longest_prompt(limits: Limits, engine: Engine) -> int | None:
    """In tokens, by the limits and by the engine; ``None`` for any."""
    bounds = [b for b in (limits.max_prompt_tokens, engine.max_prompt_tokens) if b is not None]
    return min(bounds, default=None)


def _check(
    limits: Limits, engine: Engine, prompts: Sequence[Sequence[int]], n: int, max_tokens: int
) -> None:
    if len(prompts) * n > limits.max_choices:
        raise ApiError(
            f"{len(prompts) * n} answers are asked for; this server gives {limits.max_choices} to "
            "a request at most (prompts times n)",
            param="n",
        )
    if max_tokens > limits.max_tokens:
        raise ApiError(
            f"max_tokens = {max_tokens} is more than this server writes ({limits.max_tokens})",
            param="max_tokens",
        )
    bound = longest_prompt(limits, engine)
    longest = max(map(len, prompts))
    if bound is not None and longest > bound:
        raise ApiError(
            f"the prompt has {longest} tokens; this server reads {bound} at most",
            code="context_length_exceeded",
        )


def _sampling(
    asked: GenerationFields, recommended: Mapping[str, Any], number: int
) -> SamplingParams:
    given = {name: getattr(asked, name) for name in OPTIONS}
    chosen = {**recommended, **{k: v for k, v in given.items() if v is not None}}
    if chosen.get("top_k") == -1:
        # vLLM's word for no limit.
        chosen["top_k"] = 0
    bias = {int(token): value for token, value in (asked.logit_bias or {}).items()}
    # Else the answers to one prompt would be the same.
    seed = None if asked.seed is None else asked.seed + number
    return SamplingParams(**chosen, seed=seed, logit_bias=bias)
