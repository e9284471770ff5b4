"""Lizard's gated linear attention: the contract, and its definition token by token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from allmem.errors import AllMemError
from allmem.layout import Layout
from allmem.mixers.base import Mixer
from allmem.mixers.conformance import MixerConformance, randomise
from allmem.mixers.heads import Heads
from allmem.mixers.lizard import MASS_EPS, LizardMixer, LizardOptions
from tests.mixers.small import HIDDEN, small_memory

CPU = torch.device("cpu")
CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "few-features": {"features": 3},
    "many-features": {"features": 9, "meta": 2},
    "no-meta-memory": {"meta": 0},
    "plain": {"conv": 0, "qk_norm": "none", "gate": "silu"},
    "evicted": {"write_scope": "evicted"},
}


class TestLizard(MixerConformance):
    """The contract, with every option."""

    hidden_size = HIDDEN
    options: dict[str, Any]

    @pytest.fixture(autouse=True, params=CASES.values(), ids=CASES.keys())
    def choose(self, request: pytest.FixtureRequest) -> None:
        self.options = request.param

    def make_mixer(self) -> Mixer:
        return small_memory("lizard", **self.options)


def lizard(**options: Any) -> LizardMixer:
    mixer = small_memory("lizard", **options)
    assert isinstance(mixer, LizardMixer)
    randomise(mixer.double())
    return mixer


def heads_of(mixer: LizardMixer, x: Tensor) -> Heads:
    state = mixer.init_state(x.shape[0], x.dtype, CPU)
    return mixer.shell.inputs(x, state.tails, Layout.dense(0, *x.shape[:2], CPU))


def by_definition(mixer: LizardMixer, heads: Heads) -> Tensor:
    """Every query asks every token before it, [R, H, N, dv]: nothing is carried along."""

    def features(x: Tensor, weight: Tensor) -> Tensor:
        logits = torch.einsum("rhnd,hdf->rhnf", x, weight)
        up, down = logits.exp(), (-logits).exp()
        return torch.cat([up, down], -1) / (up + down).sum(-1, keepdim=True)

    f, g = features(heads.k, mixer.k_features), features(heads.q, mixer.q_features)
    forget = heads.mapped(mixer.decay).exp()
    read = torch.zeros_like(heads.v)
    for t in range(heads.v.shape[2]):
        weights = [
            (g[:, :, t] * forget[:, :, j + 1 : t + 1].prod(2) * f[:, :, j]).sum(-1)
            for j in range(t + 1)
        ]
        weight = torch.stack(weights, -1)
        share = weight / (weight.sum(-1, keepdim=True) + MASS_EPS)
        read[:, :, t] = torch.einsum("rhj,rhjd->rhd", share, heads.v[:, :, : t + 1])
    logits = torch.einsum("rhnd,hmd->rhnm", heads.q, mixer.meta_keys) / 6**0.5
    return read + torch.einsum("rhnm,hmd->rhnd", logits.softmax(-1), mixer.meta_values)


def test_it_reads_a_normalised_mean_of_values_and_the_meta_memory() -> None:
    mixer = lizard()
    heads = heads_of(mixer, torch.randn(2, 13, HIDDEN, dtype=torch.float64))
    read, _ = mixer.rule(heads, mixer.init_state(2, torch.float64, CPU).matrix)
    torch.testing.assert_close(read, by_definition(mixer, heads), rtol=0, atol=1e-10)


def test_at_the_start_the_meta_memory_adds_nothing() -> None:
    with_meta, without = small_memory("lizard"), small_memory("lizard", meta=0)
    x = torch.randn(1, 9, HIDDEN)
    layout = Layout.dense(0, 1, 9, CPU)
    read = [m(x, m.init_state(1, x.dtype, CPU), layout)[0] for m in (with_meta, without)]
    assert torch.equal(*read)
    assert bool(read[0].any())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"meta": -1}, "meta = -1 must be a whole number"),
        ({"features": 0}, "features = 0 must be a positive whole number"),
        ({"feature": 4}, "features"),
    ],
)
def test_bad_options_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(AllMemError, match=message):
        LizardOptions.from_dict(values)
