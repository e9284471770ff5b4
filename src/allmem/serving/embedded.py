"""The engine of this package: continuous batching of many sequences in one process.

One thread reads and writes; requests come from an event loop and their tokens go back to it. It is
what a laptop needs, and what a server needs that has no vLLM.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

import torch

from allmem.config import WindowConfig
from allmem.errors import AllMemError
from allmem.models.modeling import AllMemForCausalLM
from allmem.serving.engine import (
    MAX_WAITING,
    Engine,
    EngineLoad,
    EngineStopped,
    GeneratedToken,
    GenerationRequest,
    usual_step_tokens,
)
from allmem.serving.scheduler import Event, Scheduler, Sequence

__all__ = ["EmbeddedEngine"]

log = logging.getLogger(__name__)

Outcome = GeneratedToken | AllMemError


@dataclass(eq=False)
class _Stream:
    """A request's way back to the event loop."""

    sequence: Sequence
    outcomes: asyncio.Queue[Outcome] = field(default_factory=asyncio.Queue)


class EmbeddedEngine(Engine):
    """Continues many sequences at once with one model.

    Args:
        model: that reads and writes.
        slots: sequences that are under way at once; each holds a state.
        step_tokens: tokens that are read in one step, for which all answers wait; ``None`` for a
            number that suits the device.
        max_waiting: requests that may wait for a slot.
        keep: of so many texts that have ended the states are kept, each as large as a slot, for
            those that go on from them.
        window, chunk: read with these in place of the configured ones.

    Raises:
        AllMemError: on a number out of its range, or if the states do not fit into memory.
    """

    name = "embedded"

    def __init__(
        self,
        model: AllMemForCausalLM,
        *,
        slots: int = 8,
        step_tokens: int | None = None,
        max_waiting: int = MAX_WAITING,
        keep: int = 1,
        window: WindowConfig | None = None,
        chunk: int | None = None,
    ) -> None:
        if step_tokens is None:
            step_tokens = usual_step_tokens(model.device.type)
        self.check_sizes(max_waiting, slots=slots, step_tokens=step_tokens)
        if keep < 0:
            raise AllMemError(f"keep = {keep} must be 0 (none) or more")
        self.slots, self.max_waiting = slots, max_waiting
        embeddings: Any = model.get_input_embeddings()
        self.vocabulary = embeddings.weight.shape[0]
        try:
            with torch.inference_mode():
                self._scheduler = Scheduler(
                    model.eval(), slots, step_tokens, window, chunk, keep=keep
                )
        except (MemoryError, RuntimeError) as error:
            if "memory" not in str(error):
                raise
            raise AllMemError(
                f"the states of slots = {slots} sequences do not fit into memory; choose fewer, or "
                "a smaller window"
            ) from error
        self._streams: dict[Sequence, _Stream] = {}
        self._wake = threading.Condition()
        # Guarded by ``_wake``: what the event loop asks of the thread.
        self._coming: list[Sequence] = []
        self._going: list[Sequence] = []
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    # In the event loop

    async def start(self) -> None:
        """As in the contract."""
        assert self._thread is None, "an engine is started once"
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name="allmem-engine", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """As in the contract."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
        for stream in self._streams.values():
            stream.outcomes.put_nowait(EngineStopped("the server is shutting down"))

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GeneratedToken, None]:
        """As in the contract."""
        if self._stopping or self._thread is None:
            raise EngineStopped("the engine is not running: the server is shutting down")
        self.admit(request, len(self._streams))
        stream = _Stream(Sequence(request))
        self._streams[stream.sequence] = stream
        self._tell(self._coming, stream.sequence)
        try:
            while True:
                outcome = await stream.outcomes.get()
                if isinstance(outcome, AllMemError):
                    raise outcome
                yield outcome
                if outcome.finish is not None:
                    return
        finally:
            del self._streams[stream.sequence]
            self._tell(self._going, stream.sequence)

    def load(self) -> EngineLoad:
        """As in the contract."""
        scheduler = self._scheduler
        running = scheduler.running
        return EngineLoad(
            running=running,
            waiting=max(len(self._streams) - running, 0),
            slots=self.slots,
            state_bytes=scheduler.state_bytes,
            prompt_tokens=scheduler.prompt_tokens,
            generated_tokens=scheduler.generated_tokens,
        )

    @property
    def max_prompt_tokens(self) -> None:
        """None: a state does not grow, or as far as memory goes."""
        return None

    def _tell(self, box: list[Sequence], sequence: Sequence) -> None:
        with self._wake:
            box.append(sequence)
            self._wake.notify()

    def _deliver(self, events: list[Event]) -> None:
        for event in events:
            stream = self._streams.get(event.sequence)
            # Those whose owner has gone have none.
            if stream is not None:
                stream.outcomes.put_nowait(event.outcome)

    # In the thread

    @torch.inference_mode()
    def _work(self) -> None:
        scheduler = self._scheduler
        while self._listen():
            try:
                events = scheduler.step()
            except Exception as error:
                # One bad step must not end the server; who took part in it cannot go on.
                log.exception("a step of the engine failed")
                reason = EngineStopped(f"the engine failed: {type(error).__name__}: {error}")
                events = [Event(sequence, reason) for sequence in scheduler.clear_running()]
            if events:
                self._send(events)

    def _listen(self) -> bool:
        """Wait for something to do; whether to go on."""
        with self._wake:
            while not (self._stopping or self._coming or self._going or not self._scheduler.idle):
                self._wake.wait()
            coming, self._coming[:] = list(self._coming), []
            going, self._going[:] = list(self._going), []
            stopping = self._stopping
        for sequence in coming:
            self._scheduler.add(sequence)
        for sequence in going:
            self._scheduler.remove(sequence)
        return not stopping

    def _send(self, events: list[Event]) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._deliver, events)
        except RuntimeError:
            # The loop was closed without ``stop``: nobody listens.
            self._stopping = True
