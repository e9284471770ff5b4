"""Many sequences at once answer as each of them alone, whoever else is there."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from allmem import AllMemError
from allmem.models.modeling import AllMemForCausalLM
from allmem.serving.engine import GeneratedToken, GenerationRequest
from allmem.serving.sampling import SamplingParams
from allmem.serving.scheduler import Scheduler, Sequence
from tests.models.tiny import BASES, C, V, W, text, tiny_model

GREEDY = SamplingParams(temperature=0)
LONGEST = 6 * W


def requests(count: int, seed: int = 0, **options: Any) -> list[GenerationRequest]:
    """Prompts of all lengths, of which some are much longer than the window."""
    draw = random.Random(seed)
    return [
        GenerationRequest(
            tuple(draw.randrange(3, V) for _ in range(draw.choice([1, 2, C, W, LONGEST]))),
            draw.randint(1, 3 * C),
            GREEDY,
            logprobs=2,
            **options,
        )
        for _ in range(count)
    ]


def served(scheduler: Scheduler, asked: list[GenerationRequest]) -> list[list[GeneratedToken]]:
    """The answers to requests that come one after the other, one with every step."""
    sequences = [Sequence(request) for request in asked]
    answers: dict[Sequence, list[GeneratedToken]] = {sequence: [] for sequence in sequences}
    coming = list(sequences)
    with torch.inference_mode():
        while coming or not scheduler.idle:
            if coming:
                scheduler.add(coming.pop(0))
            for event in scheduler.step():
                assert isinstance(event.outcome, GeneratedToken), event.outcome
                answers[event.sequence].append(event.outcome)
    return [answers[sequence] for sequence in sequences]


@torch.no_grad()
def alone(model: AllMemForCausalLM, request: GenerationRequest) -> tuple[list[int], list[float]]:
    """What ``generate`` answers, and the log-probabilities."""
    prompt = torch.tensor([request.prompt])
    out = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=request.max_tokens,
        do_sample=False,
        eos_token_id=sorted(request.stop) or None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    ids = out.sequences[0, prompt.shape[1] :].tolist()
    chances = torch.stack(out.logits)[:, 0].log_softmax(-1)
    return ids, [float(row[token]) for row, token in zip(chances, ids, strict=True)]


def check(model: AllMemForCausalLM, scheduler: Scheduler, asked: list[GenerationRequest]) -> None:
    check_answers(model, asked, served(scheduler, asked))


def check_answers(
    model: AllMemForCausalLM,
    asked: list[GenerationRequest],
    answers: list[list[GeneratedToken]],
) -> None:
    for request, answer in zip(asked, answers, strict=True):
        ids, logprobs = alone(model, request)
        assert [token.id for token in answer] == ids
        # The engine chooses in fp32, whatever the model computes in.
        assert [token.logprob for token in answer] == pytest.approx(logprobs, abs=1e-5)
        assert all(token.top[0][0] == token.id for token in answer)
        assert [token.finish for token in answer[:-1]] == [None] * (len(answer) - 1)
        assert answer[-1].finish == ("stop" if ids[-1] in request.stop else "length")


@pytest.mark.parametrize("family", sorted(BASES))
def test_tokens_are_those_of_generate_for_every_architecture(family: str) -> None:
    # Torch's products of experts know no float64.
    model = tiny_model(family, dtype=torch.float32 if "moe" in family else torch.float64)
    check(model, Scheduler(model, 4, 2 * C + 1), requests(6))


MIXERS = [
    "window",
    "mamba2",
    "gated_deltanet",
    "titans",
    "lact",
    "infini",
    "ahn_gated_deltanet",
    "mesa",
    "several",
    "camelot",
    "ttt_mlp",
    "multiscale",
]


@pytest.mark.parametrize("mixer", MIXERS)
def test_tokens_are_those_of_generate_for_every_kind_of_memory(mixer: str) -> None:
    model = tiny_model("llama", dtype=torch.float64, mixers=mixer)
    check(model, Scheduler(model, 3, 2 * C + 1), requests(6))


@pytest.mark.parametrize("slots", [1, 2, 5, 16], ids=lambda n: f"slots{n}")
@pytest.mark.parametrize("step_tokens", [1, C, 4 * W], ids=lambda n: f"step{n}")
def test_tokens_are_those_of_generate_however_they_are_batched(
    slots: int, step_tokens: int
) -> None:
    model = tiny_model("qwen3", dtype=torch.float64)
    check(model, Scheduler(model, slots, step_tokens), requests(12, seed=slots))


def test_layers_that_keep_everything_can_be_served() -> None:
    model = tiny_model("llama", dtype=torch.float64, mixers="full,allmem")
    scheduler = Scheduler(model, 3, 2 * C)
    check(model, scheduler, requests(6))
    assert scheduler.pool.nbytes == 0, "a text that has ended holds nothing"


def test_a_stop_token_ends_an_answer() -> None:
    model = tiny_model("llama", dtype=torch.float64)
    (request,) = requests(1, seed=3)
    ids, _ = alone(model, request)
    stop = frozenset(ids[len(ids) // 2 :])
    check(model, Scheduler(model, 2, C), [*requests(3), *requests(1, seed=3, stop=stop)])


def test_states_stay_of_one_size_and_slots_come_back() -> None:
    model = tiny_model("llama", dtype=torch.float64)
    scheduler = Scheduler(model, 3, C)
    before = scheduler.pool.nbytes
    for seed in range(3):
        served(scheduler, requests(5, seed))
    assert scheduler.pool.nbytes == before
    assert sorted(scheduler._free) == [0, 1, 2]


def test_who_leaves_changes_nothing_for_the_others() -> None:
    model = tiny_model("llama", dtype=torch.float64)
    stay, leave = requests(2, seed=5), requests(3, seed=6)
    scheduler = Scheduler(model, 4, C)
    staying, leaving = [Sequence(r) for r in stay], [Sequence(r) for r in leave]
    answers: dict[Sequence, list[int]] = {s: [] for s in staying}
    with torch.inference_mode():
        for sequence in [leaving[0], staying[0], leaving[1], staying[1], leaving[2]]:
            scheduler.add(sequence)
        while not scheduler.idle:
            for event in scheduler.step():
                assert isinstance(event.outcome, GeneratedToken)
                if event.sequence in answers:
                    answers[event.sequence].append(event.outcome.id)
            if leaving:
                scheduler.remove(leaving.pop())
    assert [answers[s] for s in staying] == [alone(model, r)[0] for r in stay]


def test_a_short_question_does_not_wait_for_a_book() -> None:
    model = tiny_model("llama")
    scheduler = Scheduler(model, 2, 8)
    book = Sequence(GenerationRequest(tuple(text(1, 400)[0].tolist()), 1, GREEDY))
    question = Sequence(GenerationRequest((5, 6, 7), 2, GREEDY))
    with torch.inference_mode():
        scheduler.add(book)
        scheduler.step()
        scheduler.add(question)
        events = [event for _ in range(2) for event in scheduler.step()]
    assert [event.sequence for event in events] == [question, question]
    assert book.read > 8, "the book is read meanwhile"


def test_the_first_prompt_moves_on_however_many_short_ones_come() -> None:
    model = tiny_model("llama")
    scheduler = Scheduler(model, 4, 8)
    book = Sequence(GenerationRequest(tuple(text(1, 120)[0].tolist()), 1, GREEDY))
    with torch.inference_mode():
        scheduler.add(book)
        steps = 0
        while book.slot is not None or steps == 0:
            for _ in range(3):
                scheduler.add(Sequence(GenerationRequest((5,) * 7, 1, GREEDY)))
            scheduler.step()
            steps += 1
            assert steps < 40


def test_logits_that_are_no_numbers_end_one_request_only() -> None:
    model = tiny_model("llama", dtype=torch.float64)
    with torch.no_grad():
        model.get_input_embeddings().weight[7] = float("nan")
    scheduler = Scheduler(model, 2, C)
    bad = Sequence(GenerationRequest((5, 7), 2, GREEDY))
    good = Sequence(GenerationRequest((5, 6), 2, GREEDY))
    outcomes: dict[Sequence, list[Any]] = {bad: [], good: []}
    with torch.inference_mode():
        scheduler.add(bad)
        scheduler.add(good)
        while not scheduler.idle:
            for event in scheduler.step():
                outcomes[event.sequence].append(event.outcome)
    assert len(outcomes[bad]) == 1
    with pytest.raises(AllMemError, match="not finite after 2 tokens"):
        raise outcomes[bad][0]
    assert [type(outcome) for outcome in outcomes[good]] == [GeneratedToken] * 2


def going_on(request: GenerationRequest, answer: list[GeneratedToken]) -> GenerationRequest:
    """The next turn: all of the text so far, and something new."""
    more = (9, 8, 7, 6, 5)
    return replace(request, prompt=(*request.prompt, *(t.id for t in answer), *more))


@pytest.mark.parametrize("mixers", ["allmem", "mamba2", "titans", "full,allmem"])
def test_a_text_is_gone_on_with_where_it_ended(mixers: str) -> None:
    model = tiny_model("llama", dtype=torch.float64, mixers=mixers)
    scheduler = Scheduler(model, 2, 2 * C, keep=2)
    talks = requests(2, seed=4)
    for _ in range(3):
        before = scheduler.prompt_tokens
        answers = served(scheduler, talks)
        check_answers(model, talks, answers)
        talks = [going_on(*pair) for pair in zip(talks, answers, strict=True)]
    # All but the last token of each answer had been read.
    assert scheduler.prompt_tokens - before == 2 * (5 + 1)
    assert scheduler.kept.nbytes == sum(
        state.nbytes for states in scheduler.kept._states.values() for state in states
    )


def test_as_many_texts_are_kept_as_may_and_the_oldest_goes() -> None:
    model = tiny_model("llama", dtype=torch.float64)
    scheduler = Scheduler(model, 1, 2 * C, keep=2)
    asked = [GenerationRequest((first, 5, 6), 3, GREEDY) for first in (10, 11, 12)]
    answers = served(scheduler, asked)
    one = scheduler.kept.nbytes / 2
    assert one == scheduler.pool.nbytes
    assert scheduler.state_bytes == 3 * one
    for request, answer, is_kept in zip(asked, answers, (False, True, True), strict=True):
        before = scheduler.prompt_tokens
        scheduler.kept.most = 9  # so that asking drops nothing
        served(scheduler, [going_on(request, answer)])
        assert (scheduler.prompt_tokens - before == 6) == is_kept


def test_what_is_kept_is_a_copy() -> None:
    model = tiny_model("llama", dtype=torch.float64)
    scheduler = Scheduler(model, 1, 2 * C, keep=8)
    (request,) = requests(1, seed=9)
    (answer,) = served(scheduler, [request])
    second = going_on(request, answer)
    first_time = served(scheduler, [second])
    served(scheduler, requests(3, seed=10))
    assert served(scheduler, [second]) == first_time


def test_nothing_is_kept_unless_asked_for() -> None:
    model = tiny_model("llama")
    scheduler = Scheduler(model, 1, 2 * C)
    served(scheduler, requests(2))
    assert scheduler.state_bytes == scheduler.pool.nbytes
