"""vLLM as the engine of `allmem serve` and of `allmem collect`, in processes of its own.

Starting it takes most of the time, so one engine answers all tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from allmem import AllMemError
from allmem.opening import OpenedModel
from allmem.reading import Sampling
from allmem.serving.embedded import EmbeddedEngine
from allmem.serving.engine import (
    Engine,
    EngineStopped,
    GeneratedToken,
    GenerationRequest,
    QueueFull,
)
from allmem.serving.responding import EngineResponder
from allmem.serving.sampling import SamplingParams
from allmem.serving.vllm_engine import VLLMEngine
from tests.models.tiny import V
from tests.serving.vllm.serving import MIXED, calm_model

pytestmark = pytest.mark.vllm

GREEDY = SamplingParams(temperature=0)
NEW = 12


class Owner:
    """An engine, and the responder in whose event loop it runs."""

    def __init__(self, opened: OpenedModel) -> None:
        self.opened = opened
        self.engine = VLLMEngine(opened, slots=3, step_tokens=16, max_waiting=20, max_model_len=512)
        self.responder = EngineResponder(self.engine, (), Sampling(seed=0), NEW)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.responder._loop).result(300)


@pytest.fixture(scope="module")
def owner() -> Iterator[Owner]:
    tokenizer = SimpleNamespace(save_pretrained=lambda folder: None)
    made = Owner(OpenedModel(calm_model(), tokenizer))
    yield made
    made.run(made.engine.stop())
    with pytest.raises(EngineStopped):
        made.run(answer(made.engine, GenerationRequest((5,), 1)))
    made.responder.close()


async def answer(engine: Engine, request: GenerationRequest) -> list[GeneratedToken]:
    return [token async for token in engine.generate(request)]


async def answers(engine: Engine, asked: list[GenerationRequest]) -> list[list[GeneratedToken]]:
    return await asyncio.gather(*(answer(engine, request) for request in asked))


async def embedded(owner: Owner, asked: list[GenerationRequest]) -> list[list[GeneratedToken]]:
    engine = EmbeddedEngine(owner.opened.model, slots=2)
    await engine.start()
    try:
        return await answers(engine, asked)
    finally:
        await engine.stop()


def test_both_engines_answer_alike(owner: Owner) -> None:
    asked = [GenerationRequest(tuple(ids), NEW, GREEDY, logprobs=2) for ids in MIXED]
    ours = owner.run(embedded(owner, asked))
    theirs = owner.run(answers(owner.engine, asked))
    for mine, other in zip(ours, theirs, strict=True):
        assert [token.id for token in mine] == [token.id for token in other]
        assert [t.finish for t in mine] == [t.finish for t in other]
        assert [t.logprob for t in mine] == pytest.approx([t.logprob for t in other], abs=1e-4)
        assert [[i for i, _ in t.top] for t in mine] == [[i for i, _ in t.top] for t in other]
    load = owner.engine.load()
    assert (load.running, load.waiting, load.slots) == (0, 0, 3)
    assert load.generated_tokens >= NEW * len(asked)


def test_a_stop_token_ends_an_answer_and_is_its_last(owner: Owner) -> None:
    free = owner.run(answer(owner.engine, GenerationRequest(tuple(MIXED[4]), NEW, GREEDY)))
    stop = frozenset((free[NEW // 2].id,))
    asked = GenerationRequest(tuple(MIXED[4]), NEW, GREEDY, stop)
    (ours,), theirs = owner.run(embedded(owner, [asked])), owner.run(answer(owner.engine, asked))
    assert ours == theirs
    assert theirs[-1].finish == "stop"


def test_a_closed_stream_frees_its_slot(owner: Owner) -> None:
    async def test() -> None:
        streams = [owner.engine.generate(GenerationRequest((5, 6, 7), 400)) for _ in range(3)]
        for stream in streams:
            await anext(stream)
        assert owner.engine.load().running == 3
        for stream in streams:
            await stream.aclose()
        assert owner.engine.load().running == 0
        assert len(await answer(owner.engine, GenerationRequest((5, 6), 2, GREEDY))) == 2

    owner.run(test())


def test_a_short_prompt_is_answered_beside_a_long_one(owner: Owner) -> None:
    async def test() -> None:
        book = asyncio.create_task(answer(owner.engine, GenerationRequest((7,) * 480, 1, GREEDY)))
        await asyncio.sleep(0)
        assert len(await answer(owner.engine, GenerationRequest((5, 6), 2, GREEDY))) == 2
        assert not book.done()
        assert len(await book) == 1

    owner.run(test())


def test_a_full_queue_is_told(owner: Owner) -> None:
    async def test() -> None:
        endless = GenerationRequest((5, 6, 7), 400)
        tasks = [asyncio.create_task(answer(owner.engine, endless)) for _ in range(23)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull):
            await answer(owner.engine, endless)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    owner.run(test())


@pytest.mark.parametrize(
    "request_",
    [
        GenerationRequest((5, V + 7), 1),
        GenerationRequest((5,) * 600, 1),
        GenerationRequest((5,), 1, SamplingParams(logit_bias={V + 3: 1.0})),
    ],
    ids=["token", "length", "bias"],
)
def test_what_vllm_refuses_is_an_error_of_the_request(
    owner: Owner, request_: GenerationRequest
) -> None:
    with pytest.raises(AllMemError, match=r"vllm refused|there is no token"):
        owner.run(answer(owner.engine, request_))
    assert len(owner.run(answer(owner.engine, GenerationRequest((5, 6), 2, GREEDY)))) == 2


def test_prompts_are_answered_as_by_the_other_engine(owner: Owner) -> None:
    ours = EngineResponder(EmbeddedEngine(owner.opened.model), (), Sampling(seed=0), NEW)
    numbers = range(len(MIXED))
    assert owner.responder(MIXED, numbers) == ours(MIXED, numbers)
    ours.close()
