"""An engine in the place of ``Responder``: prompts are answered side by side, each leaving as soon
as it is finished, where a batch of ``generate`` waits for its longest answer.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import aclosing, contextmanager

from allmem.batching import own_seed
from allmem.distill.responses import Response
from allmem.errors import AllMemError, unknown_name
from allmem.opening import OpenedModel
from allmem.reading import Sampling, stop_ids
from allmem.serving.engine import Engine, GenerationRequest
from allmem.serving.installed import require_vllm
from allmem.serving.opening import EngineSettings, make_engine, settled
from allmem.serving.sampling import SamplingParams

__all__ = ["ENGINES", "EngineResponder", "responding"]

ENGINES = ("auto", "generate", "embedded", "vllm")
AHEAD = 8
"""Prompts that an engine is given at once, for each that it can answer at the same time."""
STEP_TOKENS = 1024
"""More than a server's: nobody waits for the next token of an answer."""


class EngineResponder:
    """Answers prompts as ``Responder`` does. Every prompt draws random numbers of its own, so its
    answer does not depend on the others.

    Args:
        engine: not started yet; it runs in an event loop of its own until ``close``.
        stop: tokens that end a response.
        sampling: its seed decides all responses.
        max_new_tokens: longest response.
    """

    def __init__(
        self, engine: Engine, stop: Collection[int], sampling: Sampling, max_new_tokens: int
    ) -> None:
        self.name = engine.name
        self._engine, self._stop, self._sampling = engine, frozenset(stop), sampling
        self._max_new_tokens = max_new_tokens
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(engine.start(), self._loop).result()

    def __call__(self, prompts: Sequence[Sequence[int]], numbers: Sequence[int]) -> list[Response]:
        """See ``Responder``."""
        pairs = list(zip(prompts, numbers, strict=True))
        return asyncio.run_coroutine_threadsafe(self._all(pairs), self._loop).result()

    async def _all(self, pairs: Sequence[tuple[Sequence[int], int]]) -> list[Response]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._one(*pair)) for pair in pairs]
        return [task.result() for task in tasks]

    async def _one(self, prompt: Sequence[int], number: int) -> Response:
        how = self._sampling
        sampling = SamplingParams(how.temperature, how.top_p, how.top_k, seed=own_seed(how, number))
        asked = GenerationRequest(tuple(prompt), self._max_new_tokens, sampling, self._stop)
        async with aclosing(self._engine.generate(asked)) as stream:
            tokens = [token async for token in stream]
        return Response([token.id for token in tokens], tokens[-1].finish == "stop")

    def close(self) -> None:
        """Stop the engine."""
        asyncio.run_coroutine_threadsafe(self._engine.stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@contextmanager
def responding(
    engine: str,
    opened: OpenedModel,
    end: int,
    sampling: Sampling,
    *,
    max_new_tokens: int,
    slots: int,
) -> Iterator[tuple[EngineResponder | None, int]]:
    """What answers a collection's prompts, and how many it should be given at once.

    Args:
        engine: one of ``ENGINES``; ``auto`` as for a server, where even the embedded engine is
            faster than ``generate`` (docs/distillation.md).
        opened: the student.
        end: the token that ends a response, beside those that the model knows.
        slots: prompts that are answered at the same time.

    Yields:
        ``None`` for ``generate``.

    Raises:
        AllMemError: if the engine is not installed, or does not serve this model.
    """
    if engine not in ENGINES:
        raise AllMemError(unknown_name("engine", engine, ENGINES))
    engine = settled(engine, opened)
    if engine == "generate":
        yield None, slots
        return
    if engine == "vllm":
        require_vllm("use --engine embedded")
    longest = AHEAD * slots
    settings = EngineSettings(
        slots=slots,
        step_tokens=STEP_TOKENS,
        max_waiting=longest,
        # No prompt goes on from another's answer.
        keep=0 if engine == "embedded" else None,
    )
    made = make_engine(engine, opened, settings)
    stop = {end, *stop_ids(opened.model, opened.tokenizer)}
    responder = EngineResponder(made, stop, sampling, max_new_tokens)
    try:
        yield responder, longest
    finally:
        responder.close()
