"""Every named ablation is one change of the default, and it matters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from allmem.config import MemoryConfig
from allmem.layout import Layout
from allmem.memory.projections import AttentionWeights, Features
from allmem.mixers.ablations import ABLATIONS, ISOLATES
from allmem.mixers.allmem import AllMemMixer
from allmem.mixers.conformance import randomise

HIDDEN, HEADS, KV, HEAD = 24, 4, 2, 8
CPU = torch.device("cpu")
SMALL = {"chunk": 5, "rank": 3}


def attention() -> AttentionWeights:
    g = torch.Generator().manual_seed(5)

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=g)

    sizes = ((HEADS * HEAD, HIDDEN), (KV * HEAD, HIDDEN), (KV * HEAD, HIDDEN))
    q, k, v = (matrix(*size) for size in sizes)
    return AttentionWeights(HEADS, KV, HEAD, q, k, v, matrix(HIDDEN, HEADS * HEAD))


def mixer(weights: AttentionWeights, **options: Any) -> AllMemMixer:
    torch.manual_seed(2)
    config = MemoryConfig.from_dict({**SMALL, **options})
    return AllMemMixer(HIDDEN, config, weights).double()


def read(memory: AllMemMixer, weights: AttentionWeights) -> Tensor:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(1, 40, HIDDEN, generator=g, dtype=torch.float64)
    q, k, v, o = (w.double() for w in (weights.q, weights.k, weights.v, weights.o) if w is not None)
    features = Features(x @ q.T, x @ k.T, x @ v.T, o)
    with torch.no_grad():
        y, _ = memory(x, memory.init_state(1, x.dtype, CPU), Layout.dense(0, 1, 40, CPU), features)
    return y


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_ablation_changes_what_is_read(name: str) -> None:
    """At random weights, the same wherever both have them."""
    changes, weights = ABLATIONS[name], attention()
    default, changed = mixer(weights), mixer(weights, **changes)
    # What a start changes is what random weights would cover.
    if not changes.keys() & {"start", "step_ratio", "base_rate"}:
        randomise(default)
        shared = default.state_dict()
        for key, value in changed.state_dict().items():
            if key in shared and shared[key].shape == value.shape:
                value.copy_(shared[key])
    one, other = read(default, weights), read(changed, weights)
    assert bool(torch.isfinite(other).all())
    assert float((one - other).norm() / one.norm()) > 1e-4


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_ablation_is_a_change_of_the_default(name: str) -> None:
    default = MemoryConfig().to_dict()
    for option, value in ABLATIONS[name].items():
        assert default[option] != value
    assert ISOLATES[name]


def test_what_was_asked_for_can_be_ablated() -> None:
    """Normalisation, loss, residual, momentum, convolution, gate, activation, projections, chunk
    and the network's width."""
    changed = {option for changes in ABLATIONS.values() for option in changes}
    assert changed >= {
        "norm",
        "loss",
        "residual",
        "momentum",
        "conv",
        "gate",
        "feature_activation",
        "projections",
        "start",
        "chunk",
        "width",
        "network",
    }
    norms = {changes["norm"] for changes in ABLATIONS.values() if "norm" in changes}
    assert norms == {"none", "post_update"}
    projections = {c["projections"] for c in ABLATIONS.values() if "projections" in c}
    assert projections == {"shared", "lowrank"}
