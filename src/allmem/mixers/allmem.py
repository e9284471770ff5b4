"""``allmem``: the paper's memory network as a mixer (paper section 3.2), and ``lact``: the same
network and chunks under the rule that the paper started from, Large-Chunk Test-Time Training (Zhang
et al. 2025, arXiv:2505.23884).

    M(z; F) = F_down (SiLU(F_gate z) * (F_up z)),   l_t = -M(k_t) . v_t
    U_c = beta_c U_{c-1} + sum_t eta_t dl_t/dF,     F_c = rows(F_{c-1} - Muon(U_c))

with q and k of length one, SiLU on v too, three rates per token that start at 0.001, and
``rows`` bringing every row of every matrix back to its length in F_0. LaCT's projections, rotary
positions and output scale give way to what stands around every memory here; its momentum decays
start at about 0.5, these at 0.12.
"""

from __future__ import annotations

import torch
from torch import Tensor

from allmem.config import MemoryConfig
from allmem.layout import Layout
from allmem.memory.inner_loop import finds_rows
from allmem.memory.muon import orthogonalise_flops
from allmem.memory.projections import AttentionWeights, Features, Narrowing, Wanted, Written
from allmem.memory.state import MemoryState, UnitState, accumulation_dtype
from allmem.memory.unit import MemoryUnit
from allmem.mixers.base import Capabilities, MemoryMixer
from allmem.mixers.registry import MemoryKind, register_memory
from allmem.state import State

__all__ = ["AllMemMixer"]

LACT = {
    "residual": False,
    "loss": "dot",
    "norm": "post_update",
    "norm_matrices": ("gate", "up", "down"),
    "clip": None,
    "optimizer": "muon",
    "qk_norm": "l2",
    "value_activation": True,
    "normalize_values": False,
    "base_rate": 0.001,
    # LaCT does not scale its rates, and this is its chunk.
    "reference_chunk": 2048,
}


class AllMemMixer(MemoryMixer):
    """A ``MemoryUnit`` under the mixer contract."""

    capabilities = Capabilities(constant_state=True, trainable=True)
    # Small numbers whose rounding matters: rates and the start of the fast weights.
    keep_fp32 = ("unit.eta", "unit.beta", "unit.initial")

    def __init__(self, hidden_size: int, config: MemoryConfig, attention: AttentionWeights) -> None:
        super().__init__()
        self.unit = MemoryUnit(
            hidden_size, config.sized(hidden_size, attention.kv_heads), attention
        )
        if config.projections == "shared":
            self.wants = Wanted.FEATURES

    def init_state(self, rows: int, dtype: torch.dtype, device: torch.device) -> UnitState:
        return self.unit.begin(rows, dtype)

    def passing_state(
        self, rows: int, dtype: torch.dtype, device: torch.device, layout: Layout
    ) -> UnitState:
        """As long as no chunk closes, all rows read F_0 and nothing is written."""
        chunk = layout.chunk or self.unit.config.chunk
        return self.unit.begin(rows, dtype, shared=len(layout.rounds(chunk)) == 1)

    def rows_of(self, pool: State, slots: Tensor, layout: Layout) -> State:
        assert isinstance(pool, UnitState)
        unit, memory = self.unit, pool.memory
        # Any weight that has the dtype of the queries.
        like = next(unit.projections.o.parameters())
        if not finds_rows(like, memory, layout, unit.config):
            return pool.select(slots)
        tails = {name: tail.index_select(0, slots) for name, tail in pool.tails.items()}
        return UnitState(memory.rows_in_place(slots), tails)

    def periods(self, layout: Layout) -> frozenset[int]:
        return frozenset((self.lag(layout),))

    def narrowings(self) -> list[Narrowing]:
        unit = self.unit
        written = unit.projections.narrowings()
        rates = [unit.eta, unit.beta] if unit.config.momentum else [unit.eta]
        return [] if written is None else [*written, *rates]

    def lag(self, layout: Layout) -> int:
        return layout.chunk or self.unit.config.chunk

    def forward(
        self,
        x: Tensor,
        state: State,
        layout: Layout,
        features: Features | None = None,
        written: Written | None = None,
    ) -> tuple[Tensor, UnitState]:
        assert isinstance(state, UnitState)
        return self.unit(x, state, layout, features, written)

    def carry(self, old: State, new: State) -> UnitState:
        """Fast weights and momentum; the open chunk and the convolutions begin anew."""
        assert isinstance(old, UnitState)
        assert isinstance(new, UnitState)
        begun = new.memory
        kept = MemoryState(old.memory.weights, old.memory.momentum, begun.gradient, begun.beta)
        return UnitState(kept, new.tails)

    def state_bytes(self, tokens: int, dtype: torch.dtype) -> int:
        unit = self.unit
        fast = sum(w.numel() for w in unit.initial.values())
        copies = 3 if unit.config.momentum else 2
        wide = accumulation_dtype(dtype).itemsize
        tails = 3 * max(unit.config.conv - 1, 0) * unit.heads * unit.head_dim
        return (copies * fast + unit.heads) * wide + tails * dtype.itemsize

    def flops_by_part(self, tokens: int) -> dict[str, int]:
        """Projections and rates; then, with F fast weights of which F_down in ``down``: the read
        (2 F), the forward of the key (2 F), and the gradient (2 F for the outer products, and
        2 F_down back through ``down``). What happens once a chunk is elementwise, but for Muon."""
        unit, projections = self.unit, self.unit.projections
        rates = 2 * unit.eta.weight.numel()
        if unit.config.momentum:
            rates += 2 * unit.beta.weight.numel()
        fast = 2 * sum(w.numel() for w in unit.initial.values())
        back = 2 * unit.initial["down"].numel() if unit.config.network == "swiglu" else 0
        parts = {
            "memory projections": tokens * projections.flops(),
            "memory rates": tokens * rates,
            "memory read": tokens * fast,
            "memory key forward": tokens * fast,
            "memory gradient": tokens * (fast + back),
        }
        if unit.config.optimizer == "muon":
            matrices = sum(orthogonalise_flops(*w.shape[1:]) for w in unit.initial.values())
            parts["memory muon"] = tokens // unit.config.chunk * unit.heads * matrices
        return parts


register_memory(MemoryKind("allmem", MemoryConfig, AllMemMixer))
register_memory(MemoryKind("lact", MemoryConfig, AllMemMixer, LACT))
