"""Continuous batching: what is read in each step, for which sequences, and what they answer.

A step reads one token of every sequence that is writing, and besides as many tokens of prompts as
``step_tokens`` leaves: half of them of the prompt that came first, so that it always moves on, the
others of the prompts that are nearest to their end, so that a short question does not wait for a
book. Sequences come and go between any two steps.

It knows models, states and token ids, and neither threads nor requests' owners; one thread calls
it, without gradients.

Letters: K tokens of a step, P predictions, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from allmem.config import WindowConfig
from allmem.errors import AllMemError
from allmem.kernels import asked_for
from allmem.layout import Layout
from allmem.models.flat import Group, read_flat
from allmem.models.modeling import AllMemForCausalLM
from allmem.serving import graphs
from allmem.serving.engine import GeneratedToken, GenerationRequest
from allmem.serving.graphs import GraphedStep
from allmem.serving.kept import KeptStates
from allmem.serving.pool import StatePool, pool_for
from allmem.serving.sampling import Sampler

__all__ = ["Event", "Scheduler", "Sequence"]

FIRST_COME = 0.5
"""Part of a step's prompt tokens that the prompt that came first may take."""
IDLE_ROWS = 0.5
"""Slots between those that write may be read along without a token, which saves the copies of all
states, as long as they are no more than this part of all. Our kernels find states by slot."""


@dataclass(eq=False)
class Sequence:
    """A request on its way."""

    request: GenerationRequest
    slot: int | None = None
    """``None`` while it waits."""
    read: int = 0
    """Tokens that its state has read."""
    answer: list[int] = field(default_factory=list)
    sampler: Sampler | None = None

    @property
    def left(self) -> int:
        """Tokens of the prompt that are to be read; 0 for one that writes."""
        return max(len(self.request.prompt) - self.read, 0)

    def next_tokens(self, count: int) -> list[int]:
        """The tokens to be read next."""
        if self.left:
            return list(self.request.prompt[self.read : self.read + count])
        return self.answer[-1:]


@dataclass(frozen=True)
class Event:
    """What a step brought for a sequence: a token, or why there will be none."""

    sequence: Sequence
    outcome: GeneratedToken | AllMemError


class Scheduler:
    """Reads and writes many sequences with one model.

    Args:
        model: that reads.
        slots: sequences that are under way at once.
        step_tokens: at most so many tokens are read in a step, but one of every sequence that
            writes in any case.
        keep: of so many texts that have ended the states are kept, for those that go on from them.
        window, chunk: read with these in place of the configured ones.

    Raises:
        AllMemError: if graphs are asked for (``allmem.models.decoding``) without a CUDA device.
    """

    def __init__(
        self,
        model: AllMemForCausalLM,
        slots: int,
        step_tokens: int,
        window: WindowConfig | None = None,
        chunk: int | None = None,
        *,
        keep: int = 0,
    ) -> None:
        self.model = model
        self.step_tokens = step_tokens
        graphed = graphs.asked_for(model, window, chunk)
        self.pool = pool_for(model, slots + graphed, window, chunk)
        self._graphs: GraphedStep | None = None
        if graphed:
            assert isinstance(self.pool, StatePool)
            self._graphs = GraphedStep(model, self.pool.by_slot, slots, slots, window, chunk)
        self.kept = KeptStates(keep)
        self.prompt_tokens = self.generated_tokens = 0
        self._how = window, chunk
        self._free = list(range(slots))
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []

    # Who takes part

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self._running or self._waiting)

    @property
    def running(self) -> int:
        """Sequences that hold a state."""
        return len(self._running)

    def add(self, sequence: Sequence) -> None:
        """Let a sequence take part as soon as there is a slot."""
        self._waiting.append(sequence)

    @property
    def state_bytes(self) -> int:
        """Of all slots, and of what is kept."""
        return self.pool.nbytes + self.kept.nbytes

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is, and free its state."""
        if sequence in self._running:
            self._running.remove(sequence)
            assert sequence.slot is not None
            self.pool.end(sequence.slot)
            self._free.append(sequence.slot)
            sequence.slot = None
        elif sequence in self._waiting:
            self._waiting.remove(sequence)

    def clear_running(self) -> list[Sequence]:
        """Take out all that hold a state; returns them."""
        running = list(self._running)
        for sequence in running:
            self.remove(sequence)
        return running

    def _admit(self) -> None:
        while self._free and self._waiting:
            sequence = self._waiting.popleft()
            # The lowest, so that those in use lie side by side.
            self._free.sort(reverse=True)
            sequence.slot = self._free.pop()
            request = sequence.request
            found = self.kept.beginning_of(request.prompt)
            if found is None:
                self.pool.begin(sequence.slot)
            else:
                sequence.read, states = found
                self.pool.go_on(sequence.slot, states)
            sequence.sampler = Sampler(request.sampling, request.prompt, self.model.device)
            self._running.append(sequence)

    # A step

    def step(self) -> list[Event]:
        """Read some tokens; the tokens that were chosen after them."""
        self._admit()
        if not self._running:
            return []
        planned = self._plan()
        logits = self._read(planned)
        for sequence, count in planned.items():
            self.prompt_tokens += min(count, sequence.left)
            sequence.read += count
        return [self._choose(s, logits[s].float()) for s in planned if s in logits]

    def _read(self, planned: dict[Sequence, int]) -> dict[Sequence, Tensor]:
        """Logits [V] of the sequences whose next token can be chosen after this step."""
        logits: dict[Sequence, Tensor] = {}
        if self._graphs is not None:
            single = [sequence for sequence, count in planned.items() if count == 1]
            planned = {s: count for s, count in planned.items() if count > 1}
            if single:
                found = self._graphs.step(
                    torch.tensor([s.next_tokens(1)[0] for s in single]),
                    torch.tensor([s.read for s in single]),
                    torch.tensor([_slot(s) for s in single]),
                )
                logits = {s: row for s, row in zip(single, found, strict=True) if s.left <= 1}
        if planned:
            logits |= self._read_flat(planned)
        return logits

    def _read_flat(self, planned: dict[Sequence, int]) -> dict[Sequence, Tensor]:
        """As ``_read``, in one call."""
        ids: list[int] = []
        first: dict[Sequence, int] = {}
        last: dict[Sequence, int] = {}
        for sequence, count in planned.items():
            first[sequence] = len(ids)
            ids += sequence.next_tokens(count)
            if count >= sequence.left:
                last[sequence] = len(ids) - 1
        device = self.model.device
        logits = read_flat(
            self.model,
            torch.tensor(ids, device=device),
            list(self._groups(planned, first)),
            self.pool,
            torch.tensor(list(last.values()), dtype=torch.int64, device=device),
        )
        return dict(zip(last, logits, strict=True))

    def _plan(self) -> dict[Sequence, int]:
        """How many tokens of which sequence are read."""
        planned = {sequence: 1 for sequence in self._running if not sequence.left}
        room = max(self.step_tokens - len(planned), 1)
        reading = [sequence for sequence in self._running if sequence.left]
        if reading:
            eldest = reading[0]
            shares = {eldest: min(eldest.left, max(int(room * FIRST_COME), 1))}
            for sequence in sorted(reading, key=lambda s: s.left):
                used = sum(shares.values())
                more = min(sequence.left - shares.get(sequence, 0), room - used)
                if more:
                    shares[sequence] = shares.get(sequence, 0) + more
            planned |= shares
        return planned

    def _groups(self, planned: dict[Sequence, int], first: dict[Sequence, int]) -> Iterator[Group]:
        """Sequences that take the same number of tokens are read together."""
        counts = sorted(set(planned.values()))
        for count in counts:
            rows = sorted((s for s, n in planned.items() if n == count), key=_slot)
            if self.pool.grows:
                for row in rows:
                    yield self._group([row], count, first)
            else:
                yield self._group(rows, count, first)

    def _group(self, rows: list[Sequence], count: int, first: dict[Sequence, int]) -> Group:
        by_slot: dict[int, Sequence | None] = {_slot(s): s for s in rows}
        lowest, highest = _slot(rows[0]), _slot(rows[-1])
        beside = (1 - IDLE_ROWS) * (highest + 1 - lowest) <= len(rows)
        if count == 1 and beside and not asked_for("triton"):
            by_slot = {slot: by_slot.get(slot) for slot in range(lowest, highest + 1)}
        sequences = by_slot.values()
        layout = Layout.ragged(
            torch.tensor([0 if s is None else s.read for s in sequences]),
            torch.tensor([0 if s is None else count for s in sequences]),
            self.model.device,
            slots=count,
        )
        return Group(
            torch.tensor([0 if s is None else first[s] for s in sequences]),
            layout.read_with(*self._how),
            torch.tensor(list(by_slot)),
        )

    def _choose(self, sequence: Sequence, logits: Tensor) -> Event:
        """The next token of a sequence, by logits [V] in fp32."""
        request, sampler = sequence.request, sequence.sampler
        assert sampler is not None
        if not bool(logits.max().isfinite()):
            self.remove(sequence)
            return Event(
                sequence,
                AllMemError(
                    f"the model's logits are not finite after {sequence.read} tokens: its weights "
                    "are damaged, or their dtype is too narrow"
                ),
            )
        token = sampler.choose(logits)
        sequence.answer.append(token)
        self.generated_tokens += 1
        finish: Literal["stop", "length"] | None = None
        if token in request.stop:
            finish = "stop"
        elif len(sequence.answer) >= request.max_tokens:
            finish = "length"
        if finish is not None:
            if self.kept.most:
                text = (*request.prompt, *sequence.answer)[: sequence.read]
                self.kept.add(text, self.pool.copy_of(_slot(sequence)))
            self.remove(sequence)
        logprob: float | None = None
        top: tuple[tuple[int, float], ...] = ()
        if request.logprobs is not None:
            chances = logits.log_softmax(-1)
            logprob = float(chances[token])
            values, ids = chances.topk(min(request.logprobs, len(chances)))
            top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        return Event(sequence, GeneratedToken(token, finish, logprob, top))


def _slot(sequence: Sequence) -> int:
    assert sequence.slot is not None
    return sequence.slot
