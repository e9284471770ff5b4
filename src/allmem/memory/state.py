"""What one sequence leaves in the memory of one layer.

An open chunk keeps no keys and values, only running sums (gradients at fixed weights add up), so
the state's size does not depend on the chunk. How many tokens the open chunk holds is not stored:
it is the number of tokens read so far, modulo the chunk.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import torch
from torch import Tensor

from allmem.state import Slots, State

__all__ = ["FastWeights", "MemoryState", "UnitState", "accumulation_dtype"]

FastWeights = dict[str, Tensor]
"""The memory network's matrices by name (see ``allmem.config.MATRICES``), each [..., out, in]."""


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """fp32 for everything up to fp32, float64 for float64: the one dtype policy of the inner
    loop."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclass
class MemoryState(State):
    """Fast weights F, momentum U, and the open chunk. All in the accumulation dtype."""

    weights: FastWeights
    """F: {matrix: [R, H, out, in]}."""
    momentum: FastWeights
    """U: the same shapes; empty without momentum."""
    gradient: FastWeights
    """Sum over the open chunk of eta_t dl_t/dF at the normalised weights, before clipping."""
    beta: Tensor
    """[R, H], sum over the open chunk of the momentum decays."""
    at: Slots | None = field(default=None, kw_only=True)
    """Of a state for one call alone: its rows' matrices are those at these slots of larger tensors,
    [P, H, out, in]. Only kernels find them there (``inner_loop.finds_rows``)."""

    def rows_in_place(self, slots: Tensor) -> MemoryState:
        """The rows ``slots`` [R] int64, on the device, of all rows, for one call that writes them
        where they lie. ``beta``, which is small, is a copy."""
        return dataclasses.replace(self, beta=self.beta.index_select(0, slots), at=Slots(slots))

    @classmethod
    def begin(
        cls, initial: FastWeights, rows: int, momentum: bool, *, shared: bool = False
    ) -> MemoryState:
        """The state before the first token: F_0 for every row, U_0 = 0, an empty chunk.

        Args:
            initial: F_0, {matrix: [H, out, in]}; gradients flow back into it.
            shared: whether all rows may be one in memory, F_0 itself: for rows that are read and
                never written.
        """
        dtype = accumulation_dtype(next(iter(initial.values())).dtype)
        weights = {name: w.to(dtype).expand(rows, *w.shape) for name, w in initial.items()}
        heads, *_ = next(iter(initial.values())).shape
        device = next(iter(initial.values())).device
        if shared:
            zero = torch.zeros((), dtype=dtype, device=device)
            zeros = {name: zero.expand_as(w) for name, w in weights.items()}
        else:
            # Copies, also for one row: a state may be written in place, F_0 may not.
            weights = {
                name: w.clone(memory_format=torch.contiguous_format) for name, w in weights.items()
            }
            zeros = {name: torch.zeros_like(w) for name, w in weights.items()}
        return cls(
            weights=weights,
            momentum={name: z if shared else z.clone() for name, z in zeros.items()}
            if momentum
            else {},
            gradient=zeros,
            beta=torch.zeros(rows, heads, dtype=dtype, device=device),
        )


@dataclass
class UnitState(State):
    """A memory unit's state: its memory, and the last inputs of its convolutions."""

    memory: MemoryState
    tails: dict[str, Tensor]
    """{"q" | "k" | "v": [R, taps - 1, H d]}, oldest first; empty without convolutions."""
