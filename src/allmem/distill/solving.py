"""Before any gradient: the output projections that lose least, in closed form.

What a memory reads, after norm and gate, goes through one linear map. For fixed reads the map that
comes nearest to what the attention lost is a ridge regression, and its normal equations are sums
over tokens. Ten thousand tokens of the teacher's stream settle it, where gradient descent from
alpha = 0 needs a hundred thousand (``docs/notes/distillation.md``). Ours, not the paper's.

Letters: R rows, N slots of a call, D hidden size, I size of a read (H d), n positions.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from allmem.distill.matching import SMALLEST_TARGET, counted_rows, has_unit, watch_teacher
from allmem.layout import Layout
from allmem.memory.projections import LowRank
from allmem.memory.state import accumulation_dtype
from allmem.mixers.allmem import AllMemMixer
from allmem.models.cache import AllMemCache
from allmem.models.layer import MixedAttention
from allmem.models.modeling import AllMemForCausalLM

__all__ = ["ReadoutSolver"]

RIDGE = 1e-2
"""Penalty, as a share of the mean square of a read's features."""


@dataclass
class _Sums:
    """Normal equations of one layer."""

    reads: Tensor
    """[I, I], sum of read^T read."""
    targets: Tensor
    """[I, D], sum of read^T lost."""
    positions: int = 0


@dataclass
class ReadoutSolver:
    """Sums over everything seen so far; every step leaves the best projections up to there.

    Args:
        ridge: see ``RIDGE``.
    """

    ridge: float = RIDGE
    sums: dict[int, _Sums] = field(default_factory=dict)

    @torch.no_grad()
    def step(
        self,
        model: AllMemForCausalLM,
        batch: dict[str, Tensor],
        counts: Tensor,
        cache: AllMemCache,
    ) -> dict[int, float]:
        """Let the teacher read a batch, add to the sums and solve; arguments as ``match_layers``.

        Returns:
            The normalised squared error of every layer on the batch *before* it learned from it.
        """
        losses: dict[int, float] = {}

        def observe(mixed: MixedAttention, x: Tensor, full: Tensor, layout: Layout) -> None:
            if has_unit(mixed):
                chosen = counted_rows(mixed, counts, layout)
                losses[mixed.layer] = self._add(mixed, x, full, layout, chosen)
                self._solve(mixed)

        watch_teacher(model, batch, cache, observe)
        return losses

    def _add(
        self, mixed: MixedAttention, x: Tensor, full: Tensor, layout: Layout, chosen: Tensor
    ) -> float:
        memory = mixed.memory
        assert isinstance(memory, AllMemMixer)
        state = mixed.init_state(x.shape[0], x.dtype, x.device, layout.window, layout.chunk)
        windowed, _, features = mixed.attention.attend(x, state.attention, layout, memory.wants)
        kept: list[Tensor] = []
        projection = memory.unit.projections.o
        handle = projection.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
        try:
            assert state.memory is not None
            remembered, _ = memory(x, state.memory, layout, features)
        finally:
            handle.remove()
        wide = accumulation_dtype(x.dtype)

        def counted(y: Tensor) -> Tensor:
            return y[chosen].to(wide)  # [n, I] or [n, D]

        read, lost, said = counted(kept[0]), counted(full - windowed), counted(remembered)
        error = (mixed.alpha.to(wide) * said - lost).square().sum()
        # Shared projections add a frozen part to the solved one, with alpha = 1.
        target = lost - (said - counted(projection(kept[0])))
        sums = self.sums.get(mixed.layer)
        if sums is None:
            zeros = read.new_zeros
            sums = _Sums(zeros(read.shape[1], read.shape[1]), zeros(read.shape[1], lost.shape[1]))
            self.sums[mixed.layer] = sums
        sums.reads += read.mT @ read
        sums.targets += read.mT @ target
        sums.positions += len(read)
        return float(error / lost.square().sum().clamp_min(SMALLEST_TARGET))

    def _solve(self, mixed: MixedAttention) -> None:
        memory = mixed.memory
        assert isinstance(memory, AllMemMixer)
        sums = self.sums[mixed.layer]
        reads = sums.reads.double()
        if not bool(reads.diagonal().any()):
            # Nothing counted so far.
            return
        penalty = self.ridge * reads.diagonal().mean() * torch.eye(len(reads)).to(reads)
        # Solved on the CPU: small, in double precision, and the same on every device.
        solution = torch.linalg.solve(
            (reads + penalty).cpu(), sums.targets.double().cpu()
        )  # [I, D]
        projection = memory.unit.projections.o
        if isinstance(projection, LowRank):
            _write_low_rank(projection, solution, reads.cpu())
        else:
            assert isinstance(projection, nn.Linear)
            projection.weight.copy_(solution.mT)
        mixed.alpha.fill_(1)


def _write_low_rank(projection: LowRank, solution: Tensor, reads: Tensor) -> None:
    """The best map of the projection's rank: the solution, cut to the directions of the output in
    which its predictions vary most (reduced-rank regression)."""
    varies = solution.mT @ reads @ solution  # [D, D], of what the solution predicts
    directions = torch.linalg.eigh(varies)[1].flip(1)[:, : projection.up.shape[1]]  # [D, rank]
    projection.up.copy_(directions)
    projection.down.copy_((solution @ directions).mT)
