"""Sampling options do what OpenAI's and vLLM's documents say of them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from allmem import AllMemError
from allmem.serving.sampling import Sampler, SamplingParams

CPU = torch.device("cpu")
LOGITS = torch.tensor([0.0, 1.0, 2.0, 3.0])


def sampler(prompt: tuple[int, ...] = (), **options: Any) -> Sampler:
    return Sampler(SamplingParams(**options), prompt, CPU)


def shares(draws: int = 4000, **options: Any) -> list[float]:
    """How often each token is chosen, by a chooser that forgets what it chose."""
    seen: Counter[int] = Counter()
    chooser = sampler(seed=0, **options)
    for _ in range(draws):
        chooser.counts.clear()
        seen[chooser.choose(LOGITS)] += 1
    return [seen[i] / draws for i in range(len(LOGITS))]


@pytest.mark.parametrize("temperature", [0.0, 1e-300])
def test_temperature_zero_is_the_likeliest_token(temperature: float) -> None:
    assert [sampler(temperature=temperature).choose(LOGITS) for _ in range(3)] == [3, 3, 3]


@pytest.mark.parametrize(
    ("options", "scaled"),
    [
        ({}, LOGITS),
        ({"temperature": 2.0}, LOGITS / 2),
        ({"logit_bias": {0: 3.0}}, LOGITS + torch.tensor([3.0, 0, 0, 0])),
        ({"top_k": 2}, torch.tensor([-torch.inf, -torch.inf, 2, 3])),
        # 0.64 alone is not yet 0.8 of the mass: the second is needed.
        ({"top_p": 0.8}, torch.tensor([-torch.inf, -torch.inf, 2, 3])),
        # Kept is what has at least 0.2 of the likeliest one's chance: exp(-1) has, exp(-2) has not.
        ({"min_p": 0.2}, torch.tensor([-torch.inf, -torch.inf, 2, 3])),
    ],
    ids=["plain", "temperature", "bias", "top-k", "top-p", "min-p"],
)
def test_tokens_come_as_often_as_the_options_say(
    options: dict[str, Any], scaled: torch.Tensor
) -> None:
    assert shares(**options) == pytest.approx(scaled.softmax(-1).tolist(), abs=0.03)


def test_one_seed_gives_one_answer_and_another_one_another() -> None:
    def answer(seed: int) -> list[int]:
        chooser = sampler(seed=seed)
        return [chooser.choose(LOGITS) for _ in range(30)]

    assert answer(1) == answer(1) != answer(2)


def test_presence_counts_once_and_frequency_every_time() -> None:
    for name, after in (("presence_penalty", [2.0, 2.0]), ("frequency_penalty", [2.0, 1.0])):
        chooser = sampler(temperature=0, **{name: 1.0})
        for expected in after:
            chooser.counts[3] += 1
            assert float(chooser._penalised(LOGITS)[3]) == expected
    assert float(LOGITS[3]) == 3.0, "the logits that were given stay as they are"


def test_repetition_looks_at_the_prompt_and_at_the_answer() -> None:
    chooser = sampler((2,), temperature=0, repetition_penalty=2.0)
    assert chooser._penalised(LOGITS).tolist() == [0.0, 1.0, 1.0, 3.0]
    assert chooser.choose(LOGITS) == 3
    assert chooser._penalised(LOGITS).tolist() == [0.0, 1.0, 1.0, 1.5]
    assert sampler((0,), repetition_penalty=2.0)._penalised(-LOGITS - 1)[0] == -2


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"min_p": 2.0},
        {"presence_penalty": 2.1},
        {"frequency_penalty": float("nan")},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": 1e300},
        {"logit_bias": {5: 101.0}},
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(AllMemError, match=next(iter(wrong))):
        SamplingParams(**wrong)
