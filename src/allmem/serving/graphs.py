"""One token of many sequences as a CUDA graph, whichever slots their states lie in.

What a graph does is fixed when it is captured, down to the addresses; so ids, counts and slots are
tensors that stay, and states are found by slot. There is one graph for each number of rows and each
set of chunks that end together. To have few of them, numbers of rows are powers of two: rows that
only fill up read a token in a slot of their own, which nobody looks at.

Letters: R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from allmem.config import WindowConfig
from allmem.layout import Layout
from allmem.models import decoding
from allmem.models.flat import Group, read_flat
from allmem.models.modeling import AllMemForCausalLM
from allmem.serving.pool import BySlot
from allmem.token_layout import TokenLayout, periods_that_end

__all__ = ["GraphedStep", "asked_for"]


@torch.no_grad()
def asked_for(
    model: AllMemForCausalLM, window: WindowConfig | None = None, chunk: int | None = None
) -> bool:
    """Whether single tokens are to be read by graphs (``allmem.models.decoding``) and can be.

    Raises:
        AllMemError: if they are to be where there is no CUDA device.
    """
    layout = Layout.dense(0, 1, 1, model.device).read_with(window, chunk)
    return "graph" in decoding.chosen(model, layout)


class GraphedStep:
    """Reads the next token of sequences in a pool.

    Args:
        model: that reads; it must keep a state of constant size.
        states: of all slots.
        rows: sequences of a step, at most.
        spare: a slot of no sequence.
        window, chunk: read with these in place of the configured ones.
    """

    def __init__(
        self,
        model: AllMemForCausalLM,
        states: BySlot,
        rows: int,
        spare: int,
        window: WindowConfig | None = None,
        chunk: int | None = None,
    ) -> None:
        self.model = model
        self.states = states
        self.how = window, chunk
        layout = Layout.dense(0, 1, 1, model.device).read_with(window, chunk)
        self.periods = decoding.periods_of(model, layout)
        self._idle = torch.tensor([0, 0, spare])
        self._given = self._idle[:, None].repeat(1, rows).to(model.device)
        self._every = torch.arange(rows, device=model.device)
        self._graphs: dict[tuple[int, frozenset[int]], tuple[Callable[[], None], Tensor]] = {}

    def step(self, ids: Tensor, read: Tensor, slots: Tensor) -> Tensor:
        """Read a token of every row.

        Args:
            ids: [R] int64, CPU.
            read: [R] int64, CPU: tokens that each row has read before.
            slots: [R] int64, CPU: where its state lies; none twice.

        Returns:
            Logits [R, V].
        """
        rows = min(1 << (len(ids) - 1).bit_length(), self._given.shape[1])
        closing = periods_that_end(self.periods, read)
        idle = self._idle[:, None].expand(-1, rows)
        if (rows, closing) not in self._graphs:
            # What is read before the capture must leave the sequences alone.
            self._given[:, :rows].copy_(idle)
            self._graphs[rows, closing] = decoding.capture(lambda _: self._run(rows, closing), [])
        given = torch.stack([ids, read, slots])
        self._given[:, :rows].copy_(torch.cat([given, idle[:, len(ids) :]], 1))
        replay, logits = self._graphs[rows, closing]
        replay()
        # The graphs write the same memory again and again.
        return logits[: len(ids)].clone()

    def _run(self, rows: int, closing: frozenset[int]) -> Tensor:
        """What is captured: no number is read back from the device."""
        ids, start, slots = self._given[:, :rows]
        every = self._every[:rows]
        group = Group(every, TokenLayout.next_of(start, *self.how, closing), slots)
        return read_flat(self.model, ids, [group], self.states, every)
