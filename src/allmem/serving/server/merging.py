"""Streams read against the clock: several at once, until a point in time, and one with silences."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import TypeVar

__all__ = ["merged", "with_silences"]

Item = TypeVar("Item")


async def merged(
    streams: Sequence[AsyncGenerator[Item, None]], deadline: float
) -> AsyncGenerator[tuple[int, Item], None]:
    """Items as they come, each with the number of its stream. However it ends, all streams are
    closed then.

    Args:
        deadline: by the event loop's clock.

    Raises:
        TimeoutError: when it has passed.
    """
    loop = asyncio.get_running_loop()
    awaited: dict[asyncio.Task[Item | None], int] = {}

    def ask(number: int) -> None:
        awaited[asyncio.ensure_future(_next(streams[number]))] = number

    try:
        for number in range(len(streams)):
            ask(number)
        while awaited:
            left = deadline - loop.time()
            done, _ = await asyncio.wait(
                awaited, timeout=max(left, 0), return_when=asyncio.FIRST_COMPLETED
            )
            if not done or left <= 0:
                raise TimeoutError
            # All results before any is handed on: a refusal comes before what others have begun.
            items = {awaited.pop(task): task.result() for task in done}
            for number, item in sorted(items.items()):
                if item is not None:
                    yield number, item
                    ask(number)
    finally:
        for task in awaited:
            task.cancel()
        await asyncio.gather(*awaited, return_exceptions=True)
        for stream in streams:
            await stream.aclose()


async def with_silences(
    stream: AsyncGenerator[Item, None], seconds: float
) -> AsyncGenerator[Item | None, None]:
    """The items of a stream, and ``None`` whenever nothing came for some seconds. However it ends,
    the stream is closed then."""
    awaited: asyncio.Task[Item | None] | None = None
    try:
        while True:
            awaited = asyncio.ensure_future(_next(stream))
            while not (await asyncio.wait({awaited}, timeout=seconds))[0]:
                yield None
            item = awaited.result()
            if item is None:
                return
            yield item
    finally:
        if awaited is not None:
            awaited.cancel()
            await asyncio.gather(awaited, return_exceptions=True)
        await stream.aclose()


async def _next(stream: AsyncGenerator[Item, None]) -> Item | None:
    return await anext(stream, None)
