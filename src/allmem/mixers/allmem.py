"""``allmem``: the paper's memory network as a mixer (paper section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from allmem.config import MemoryConfig
from allmem.layout import Layout
from allmem.memory.projections import AttentionWeights, Features, Written
from allmem.memory.state import MemoryState, UnitState, accumulation_dtype
from allmem.memory.unit import MemoryUnit
from allmem.mixers.base import Capabilities, MemoryMixer
from allmem.mixers.registry import MemoryKind, register_memory
from allmem.state import State

__all__ = ["AllMemMixer"]


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
        self.reads_features = config.projections == "shared"

    def init_state(self, rows: int, dtype: torch.dtype, device: torch.device) -> UnitState:
        return self.unit.begin(rows, dtype)

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

    def flops(self, tokens: int) -> int:
        return sum(self.flops_by_part(tokens).values())

    def flops_by_part(self, tokens: int) -> dict[str, int]:
        """Projections and rates; then, with F fast weights of which F_down in ``down``: the read
        (2 F), the forward of the key (2 F), and the gradient (2 F for the outer products, and
        2 F_down back through ``down``). What happens once a chunk is elementwise."""
        unit, projections = self.unit, self.unit.projections
        rates = 2 * unit.eta.weight.numel()
        if unit.config.momentum:
            rates += 2 * unit.beta.weight.numel()
        fast = 2 * sum(w.numel() for w in unit.initial.values())
        back = 2 * unit.initial["down"].numel() if unit.config.network == "swiglu" else 0
        return {
            "memory projections": tokens * projections.flops(),
            "memory rates": tokens * rates,
            "memory read": tokens * fast,
            "memory key forward": tokens * fast,
            "memory gradient": tokens * (fast + back),
        }


register_memory(MemoryKind("allmem", MemoryConfig, AllMemMixer))
