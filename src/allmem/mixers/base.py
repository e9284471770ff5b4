"""The contract that every token mixer fulfils, so that the same code can train, serve, measure and
compare any of them.

A mixer maps hidden states to hidden states and carries what it must remember in a ``State``.
Prefill, continuation and decode are the same call with different numbers of tokens. Run-time state
never lives on a module. ``conformance.py`` checks what a mixer's ``Capabilities`` promise.

Letters: R rows, N slots of a call, D hidden size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from allmem.config import Fusion, ReadScope
from allmem.layout import Layout
from allmem.memory.projections import Features, Narrowing, Wanted, Written
from allmem.state import State

__all__ = ["Capabilities", "MemoryMixer", "Mixer"]


@dataclass(frozen=True)
class Capabilities:
    """What a mixer promises; the conformance suite checks each promise."""

    constant_state: bool = True
    """The state's size does not depend on how much was read."""
    trainable: bool = True
    """It has slow weights, and gradients flow into all of them."""


class Mixer(nn.Module, ABC):
    """A token mixer."""

    capabilities: ClassVar[Capabilities] = Capabilities()
    keep_fp32: ClassVar[tuple[str, ...]] = ()
    """Names of submodules or parameters that stay in fp32 when the model is in half precision."""
    wants: Wanted = Wanted.NOTHING
    """How much of the attention's features ``forward`` needs."""
    initial_alpha: float = 0.0
    """Where the layer's alpha starts. Not at zero for a memory that needs no training; such a one
    says nothing, 0, as long as all tokens are in the window."""
    fusion: Fusion = "gate"
    """How a memory meets the attention of its layer (``allmem.mixers.layer``)."""
    read_scope: ReadScope = "all"
    """Which tokens hear a memory (``allmem.mixers.layer``)."""

    @abstractmethod
    def init_state(self, rows: int, dtype: torch.dtype, device: torch.device) -> State:
        """The state of ``rows`` sequences before their first token. No tensor of it shares memory
        with a weight or with another, since whoever keeps a state may write into it.

        Args:
            dtype: of the hidden states to come.
        """

    @abstractmethod
    def forward(
        self, x: Tensor, state: State, layout: Layout, features: Features | None = None
    ) -> tuple[Tensor, State]:
        """Mix the tokens of one call.

        Args:
            x: [R, N, D]; row r's tokens are its first ``layout.lengths[r]`` slots, and padding
                slots may hold anything.
            state: what the rows' earlier tokens left behind; consumed.
            layout: where the tokens stand, and with which window and chunk to read them.
            features: what the attention projected, for mixers that share its projections.

        Returns:
            [R, N, D], finite in padding slots, and the state after the call.
        """

    def rows_of(self, pool: State, slots: Tensor, layout: Layout) -> State:
        """The states of a call's rows out of a pool of states, [P, ...]; the call consumes them.

        Copies, but for what ``forward`` reads and writes where it lies: those tensors are the
        pool's own, also in the state after the call.

        Args:
            slots: [R] int64, on the device: where each row's state is in the pool.
            layout: of the call, which is eager.
        """
        return pool.select(slots)

    def periods(self, layout: Layout) -> frozenset[int] | None:
        """After how many tokens this mixer does what it does only now and then (a chunk's write),
        each counted from the beginning of a document; ``None`` if it has to know on the CPU how
        many came before, so that a ``TokenLayout`` is not for it.

        Args:
            layout: whose chunk is asked for.
        """
        return None

    def carry(self, old: State, new: State) -> State:
        """A state to begin another text with that holds what ``old`` learned.

        Args:
            new: the other text's state from ``init_state``.

        Returns:
            ``old``, unless a mixer keeps something that belongs to a place in the old text.
        """
        return old

    @abstractmethod
    def state_bytes(self, tokens: int, dtype: torch.dtype) -> int:
        """Bytes of one sequence's state after ``tokens`` tokens, in closed form."""

    @abstractmethod
    def flops(self, tokens: int) -> int:
        """Floating-point operations of one forward over the first ``tokens`` tokens of a sequence:
        matrix products and attention scores, a multiply-add counting two. Only what the result
        depends on: a key that a query does not see is not counted."""

    def flops_by_part(self, tokens: int) -> dict[str, int]:
        """``flops`` by what they are for; for a mixer that says no more, all of them one part."""
        return {"memory": self.flops(tokens)}


class MemoryMixer(Mixer):
    """A mixer that can write other tokens than it reads, so that ``write_scope = evicted`` can
    stand around it (``allmem.mixers.evicted``)."""

    def lag(self, layout: Layout) -> int:
        """Tokens that may be read before what was written is found again: 0 where a token is
        written before it reads, C where writing waits for the end of a chunk."""
        return 0

    def passing_state(
        self, rows: int, dtype: torch.dtype, device: torch.device, layout: Layout
    ) -> State:
        """``init_state`` for rows that are read in one call, ``layout``, and never continued: it
        may be smaller, and is good for nothing else."""
        return self.init_state(rows, dtype, device)

    def narrowings(self) -> list[Narrowing]:
        """The maps through which alone a hidden state is written; none if the hidden state itself
        has to be at hand then. They are all that a token that waits has to keep."""
        return []

    @abstractmethod
    def forward(
        self,
        x: Tensor,
        state: State,
        layout: Layout,
        features: Features | None = None,
        written: Written | None = None,
    ) -> tuple[Tensor, State]:
        """As ``Mixer.forward``; ``written``, if given, is what every slot writes, and the keys and
        values of ``features`` are of the same tokens."""

    def flops(self, tokens: int) -> int:
        return sum(self.flops_by_part(tokens).values())

    @abstractmethod
    def flops_by_part(self, tokens: int) -> dict[str, int]:
        """As ``Mixer.flops``, by what they are for."""
