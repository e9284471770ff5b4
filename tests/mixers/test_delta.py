"""The memories that write by the delta rule: the contract, and the code of others."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from allmem.config import WindowConfig
from allmem.memory.projections import AttentionWeights
from allmem.mixers.base import Mixer
from allmem.mixers.conformance import MixerConformance
from allmem.mixers.registry import memory_kind

HIDDEN = 24
ATTENTION = AttentionWeights(query_heads=4, kv_heads=2, head_dim=8)
SMALL: dict[str, Any] = {"key_dim": 6, "value_dim": 5, "block": 5, "rank": 3}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "deltanet": ("deltanet", {}),
    "gated": ("gated_deltanet", {}),
    "channels": ("kda", {}),
    "plain": ("gated_deltanet", {"conv": 0, "activation": False, "qk_norm": "rms"}),
    "silu-gate": ("gated_deltanet", {"gate": "silu"}),
    "low-rank": ("gated_deltanet", {"projections": "lowrank", "gate": "none"}),
    "evicted": ("ahn_gated_deltanet", {}),
    "evicted-channels": ("kda", {"write_scope": "evicted"}),
}


class TestDelta(MixerConformance):
    """The contract, with every option."""

    hidden_size = HIDDEN
    name: str
    options: dict[str, Any]

    @pytest.fixture(autouse=True, params=CASES.values(), ids=CASES.keys())
    def choose(self, request: pytest.FixtureRequest) -> None:
        self.name, self.options = request.param

    def make_mixer(self) -> Mixer:
        torch.manual_seed(1)
        kind = memory_kind(self.name)
        assert kind is not None
        options = kind.options({**SMALL, **self.options})
        return kind.make(HIDDEN, options, ATTENTION, WindowConfig(window=7, sinks=2))
