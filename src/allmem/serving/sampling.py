"""How one request chooses its tokens: the options of OpenAI's protocol, and those that vLLM and
others add to it.

The order is vLLM's: bias, penalties, temperature, min-p, top-k, top-p.

Letters: V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from allmem.errors import AllMemError
from allmem.reading import Sampling

__all__ = ["REPETITION", "Sampler", "SamplingParams"]

LIMIT_OF_PENALTIES = 2.0
"""Of presence and frequency penalties, to both sides, as in OpenAI's API."""
LIMIT_OF_BIAS = 100.0
GREEDY = 1e-5
"""Temperatures below are taken for 0: dividing by them makes logits infinite."""
REPETITION = 0.01, 100.0
"""Penalties beyond these bounds do the same."""


@dataclass(frozen=True)
class SamplingParams(Sampling):
    """Sampling options, more of them than ``Sampling`` has; the defaults change nothing.

    Raises:
        AllMemError: on a value outside its range.
    """

    temperature: float = 1.0
    """0 for the likeliest token."""
    min_p: float = 0.0
    presence_penalty: float = 0.0
    """Off the logits of tokens that the answer holds."""
    frequency_penalty: float = 0.0
    """Off the logits of tokens, for every time that the answer holds them."""
    repetition_penalty: float = 1.0
    """By which logits of tokens in prompt and answer are divided, or multiplied where negative."""
    logit_bias: dict[int, float] = field(default_factory=dict)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.temperature < GREEDY

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature == float("inf"):
            raise AllMemError(f"temperature = {self.temperature} must be a number")
        if not 0 <= self.min_p <= 1:
            raise AllMemError(f"min_p = {self.min_p} must be between 0 and 1")
        low, high = REPETITION
        if not low <= self.repetition_penalty <= high:
            raise AllMemError(
                f"repetition_penalty = {self.repetition_penalty} must be between {low:g} and "
                f"{high:g}"
            )
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            if not abs(value) <= LIMIT_OF_PENALTIES:
                raise AllMemError(f"{name} = {value} must be between -2 and 2")
        for token, bias in self.logit_bias.items():
            if not abs(bias) <= LIMIT_OF_BIAS:
                raise AllMemError(f"logit_bias of token {token} = {bias} must be within 100 of 0")


class Sampler:
    """Chooses the tokens of one answer, with a random state of its own.

    Args:
        params: how.
        prompt: what the repetition penalty looks at beside the answer.
        device: of the logits.
    """

    def __init__(self, params: SamplingParams, prompt: Sequence[int], device: torch.device) -> None:
        self.params = params
        self.counts: Counter[int] = Counter()
        self.seen = set(prompt) if params.repetition_penalty != 1 else set()
        self.warpers = LogitsProcessorList()
        if params.greedy:
            return
        if params.temperature != 1:
            self.warpers.append(TemperatureLogitsWarper(params.temperature))
        if params.min_p:
            self.warpers.append(MinPLogitsWarper(params.min_p))
        if params.top_k:
            self.warpers.append(TopKLogitsWarper(params.top_k))
        if params.top_p < 1:
            self.warpers.append(TopPLogitsWarper(params.top_p))
        self.generator = torch.Generator(device)
        if params.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(params.seed)

    def choose(self, logits: Tensor) -> int:
        """The next token, by logits [V] in fp32, which stay as they are."""
        logits = self._penalised(logits)
        if self.params.greedy:
            token = int(logits.argmax())
        else:
            no_ids = torch.empty(1, 0, dtype=torch.int64, device=logits.device)
            chances = self.warpers(no_ids, logits[None]).softmax(-1)  # [1, V]
            token = int(torch.multinomial(chances, 1, generator=self.generator))
        self.counts[token] += 1
        if self.params.repetition_penalty != 1:
            self.seen.add(token)
        return token

    def _penalised(self, logits: Tensor) -> Tensor:
        params = self.params
        penalises = params.presence_penalty or params.frequency_penalty
        if not (params.logit_bias or self.seen or (penalises and self.counts)):
            return logits
        logits = logits.clone()
        device = logits.device
        if params.logit_bias:
            ids = torch.tensor(list(params.logit_bias), device=device)
            logits[ids] += torch.tensor(list(params.logit_bias.values()), device=device)
        if self.seen:
            ids = torch.tensor(sorted(self.seen), device=device)
            old, by = logits[ids], params.repetition_penalty
            logits[ids] = torch.where(old > 0, old / by, old * by)
        if penalises and self.counts:
            ids = torch.tensor(list(self.counts), device=device)
            times = torch.tensor(list(self.counts.values()), device=device, dtype=logits.dtype)
            logits[ids] -= params.presence_penalty + params.frequency_penalty * times
        return logits
