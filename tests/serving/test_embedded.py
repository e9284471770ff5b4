"""The embedded engine: a thread that reads for an event loop, and gives back what it held."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import torch

from allmem import AllMemError
from allmem.serving.embedded import EmbeddedEngine
from allmem.serving.engine import EngineStopped, GeneratedToken, GenerationRequest, QueueFull
from allmem.serving.sampling import SamplingParams
from tests.models.tiny import V, tiny_model
from tests.serving.test_scheduler import GREEDY, alone, requests

ENDLESS = GenerationRequest((5, 6, 7), 1_000_000, GREEDY)


@asynccontextmanager
async def engine_of(**options: Any) -> AsyncIterator[EmbeddedEngine]:
    model = tiny_model("llama", dtype=torch.float64)
    engine = EmbeddedEngine(model, **{"slots": 3, "step_tokens": 8, **options})
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))  # type: ignore[arg-type]


async def answer(engine: EmbeddedEngine, request: GenerationRequest) -> list[GeneratedToken]:
    return [token async for token in engine.generate(request)]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_requests_at_the_same_time_get_their_own_answers() -> None:
    asked = requests(12)

    async def test() -> None:
        async with engine_of() as engine:
            answers = await asyncio.gather(*(answer(engine, request) for request in asked))
            model = engine._scheduler.model
            for request, tokens in zip(asked, answers, strict=True):
                assert [token.id for token in tokens] == alone(model, request)[0]
            await until(lambda: engine.load().running == 0)
            load = engine.load()
            assert (load.waiting, load.slots) == (0, 3)
            assert load.prompt_tokens == sum(len(request.prompt) for request in asked)
            assert load.generated_tokens == sum(len(tokens) for tokens in answers)

    run(test)


def test_a_closed_stream_frees_its_slot() -> None:
    async def test() -> None:
        async with engine_of(slots=1) as engine:
            stream = engine.generate(ENDLESS)
            await anext(stream)
            assert engine.load().running == 1
            later = asyncio.create_task(answer(engine, GenerationRequest((5, 6), 2, GREEDY)))
            await until(lambda: engine.load().waiting == 1)
            await stream.aclose()
            assert len(await later) == 2
            await until(lambda: engine.load().running == 0)

    run(test)


def test_a_cancelled_task_frees_its_slot_even_while_it_waits() -> None:
    async def test() -> None:
        async with engine_of(slots=1) as engine:
            tasks = [asyncio.create_task(answer(engine, ENDLESS)) for _ in range(3)]
            await until(lambda: engine.load().running == 1 and engine.load().waiting == 2)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await until(lambda: engine.load().running == 0)
            assert engine.load().waiting == 0

    run(test)


def test_a_full_queue_is_told_at_once() -> None:
    async def test() -> None:
        async with engine_of(slots=1, max_waiting=1) as engine:
            tasks = [asyncio.create_task(answer(engine, ENDLESS)) for _ in range(2)]
            await until(lambda: engine.load().waiting == 1)
            with pytest.raises(QueueFull, match="1 requests are under way and 1 wait"):
                await anext(engine.generate(ENDLESS))
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert len(await answer(engine, GenerationRequest((5,), 1, GREEDY))) == 1

    run(test)


def test_stopping_ends_every_stream_and_takes_no_more() -> None:
    async def test() -> None:
        async with engine_of(slots=1) as engine:
            tasks = [asyncio.create_task(answer(engine, ENDLESS)) for _ in range(2)]
            await until(lambda: engine.load().running == 1)
            await engine.stop()
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                assert isinstance(outcome, EngineStopped)
            with pytest.raises(EngineStopped):
                await anext(engine.generate(ENDLESS))
            await engine.stop()

    run(test)


def test_a_step_that_fails_ends_those_in_it_and_not_the_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test() -> None:
        async with engine_of(slots=1) as engine:
            original = engine._scheduler.step

            def fail() -> Any:
                if engine._scheduler.running:
                    monkeypatch.setattr(engine._scheduler, "step", original)
                    raise ZeroDivisionError("on purpose")
                return original()

            monkeypatch.setattr(engine._scheduler, "step", fail)
            first = asyncio.create_task(answer(engine, ENDLESS))
            second = asyncio.create_task(answer(engine, GenerationRequest((5, 6), 3, GREEDY)))
            with pytest.raises(EngineStopped, match="ZeroDivisionError: on purpose"):
                await first
            assert len(await second) == 3

    run(test)


@pytest.mark.parametrize(
    "request_", [GenerationRequest((5, V), 1), GenerationRequest((-1,), 1)], ids=["above", "below"]
)
def test_a_token_that_does_not_exist_is_refused(request_: GenerationRequest) -> None:
    async def test() -> None:
        async with engine_of() as engine:
            with pytest.raises(AllMemError, match=f"vocabulary has {V} tokens"):
                await answer(engine, request_)
            biased = GenerationRequest((5,), 1, SamplingParams(logit_bias={V + 3: 1.0}))
            with pytest.raises(AllMemError, match=f"no token {V + 3}"):
                await answer(engine, biased)

    run(test)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slots": 0}, "slots = 0 must be positive"),
        ({"step_tokens": 0}, "step_tokens = 0 must be positive"),
        ({"max_waiting": -1}, "max_waiting = -1"),
        ({"keep": -1}, "keep = -1"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(AllMemError, match=message):
        EmbeddedEngine(tiny_model("llama"), **options)  # type: ignore[arg-type]


def test_an_empty_prompt_and_an_empty_answer_are_refused() -> None:
    with pytest.raises(AllMemError, match="prompt has no tokens"):
        GenerationRequest((), 1)
    with pytest.raises(AllMemError, match="max_tokens = 0"):
        GenerationRequest((1,), 0)
