"""Mamba-2: the contract, and the layer of transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, Mamba2Config
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer as TheirMixer
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextRMSNormGated

from allmem.errors import AllMemError
from allmem.layout import Layout
from allmem.mixers.base import Mixer
from allmem.mixers.conformance import MixerConformance, randomise
from allmem.mixers.mamba2 import Mamba2Mixer, Mamba2Options
from tests.mixers.small import HIDDEN, small_memory

CPU = torch.device("cpu")
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("mamba2", {}),
    "no-skip": ("mamba2", {"skip": False}),
    "unit-keys": ("mamba2", {"qk_norm": "l2", "gate": "silu"}),
    "evicted": ("mamba2", {"write_scope": "evicted"}),
    "ahn": ("ahn_mamba2", {}),
}


class TestMamba2(MixerConformance):
    """The contract, with every option."""

    hidden_size = HIDDEN
    name: str
    options: dict[str, Any]

    @pytest.fixture(autouse=True, params=CASES.values(), ids=CASES.keys())
    def choose(self, request: pytest.FixtureRequest) -> None:
        self.name, self.options = request.param

    def make_mixer(self) -> Mixer:
        return small_memory(self.name, **self.options)


def mamba2(**options: Any) -> Mamba2Mixer:
    mixer = small_memory("mamba2", **options)
    assert isinstance(mixer, Mamba2Mixer)
    return mixer


class NormThenGate(nn.Module):
    """In place of their norm, which stands behind the gate: another of transformers', head by
    head."""

    def __init__(self, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = Qwen3NextRMSNormGated(head_dim, eps=1e-6)

    def forward(self, scanned: Tensor, gate: Tensor) -> Tensor:
        scanned, gate = (t.unflatten(-1, (self.heads, -1)) for t in (scanned, gate))
        return self.norm(scanned, gate).flatten(-2)


@torch.no_grad()
def theirs_with_weights_of(ours: Mamba2Mixer) -> tuple[TheirMixer, Mamba2Config]:
    """transformers' layer with as many groups as heads, so that every head has its own B and C."""
    shell = ours.shell
    config = Mamba2Config(
        hidden_size=HIDDEN,
        num_heads=shell.heads,
        head_dim=shell.value_dim,
        expand=shell.heads * shell.value_dim // HIDDEN,
        state_size=shell.key_dim,
        n_groups=shell.heads,
        conv_kernel=shell.options.conv,
        use_conv_bias=False,
        num_hidden_layers=1,
        chunk_size=4,
    )
    theirs = TheirMixer(config, 0)
    projections, taps = shell.projections, shell.convolutions
    rows = [projections.g, projections.v, projections.k, projections.q, ours.step]
    theirs.in_proj.weight.copy_(torch.cat([m.weight for m in rows]))
    # Their last tap is that of the current token.
    kernel = torch.cat([taps["v"], taps["k"], taps["q"]], 1).flip(0)
    theirs.conv1d.weight.copy_(kernel.T[:, None])
    theirs.dt_bias.copy_(ours.step.bias)
    theirs.A_log.copy_(ours.log_speed)
    theirs.D.copy_(ours.skip)
    theirs.out_proj.weight.copy_(projections.o.weight)
    theirs.norm = NormThenGate(shell.heads, shell.value_dim)
    return theirs.eval(), config


# transformers sums in fp32 whatever it is given.
@pytest.mark.parametrize(
    "calls", [[19], [7, 12], [1] * 19, [10, *[1] * 9]], ids=["prefill", "two", "decode", "both"]
)
@torch.no_grad()
def test_the_layer_is_that_of_transformers(calls: list[int]) -> None:
    """To 4e-6, at outputs of up to four. Only the order of norm and gate is not that of Mamba-2."""
    ours = mamba2(gate="silu", value_dim=12)
    randomise(ours)
    ours.shell.o_norm.weight.fill_(1)
    theirs, config = theirs_with_weights_of(ours)
    x = torch.randn(2, 19, HIDDEN)
    cache = DynamicCache(config=config)
    state, done = ours.init_state(2, x.dtype, CPU), 0
    got, expected = [], []
    for count in calls:
        now = x[:, done : done + count]
        y, state = ours(now, state, Layout.dense(done, 2, count, CPU))
        got.append(y)
        expected.append(theirs(now, cache_params=cache))
        done += count
    assert 1 < float(torch.cat(expected, 1).abs().max()) < 4
    torch.testing.assert_close(torch.cat(got, 1), torch.cat(expected, 1), rtol=0, atol=4e-6)
    matrix = cache.layers[0].recurrent_states[0].mT
    torch.testing.assert_close(state.matrix, matrix, rtol=0, atol=4e-6)


@torch.no_grad()
def test_it_starts_as_mamba2_does_if_asked_to() -> None:
    torch.manual_seed(0)
    mixer = mamba2(heads=2, decay_start="tokens")
    steps = torch.cat([_restarted(mixer).step(torch.zeros(1, HIDDEN)) for _ in range(200)])
    steps = nn.functional.softplus(steps)
    assert 0.001 * 0.99 < float(steps.min()) < 0.002
    assert 0.05 < float(steps.max()) < 0.1 * 1.01
    speeds = torch.cat([_restarted(mixer).log_speed.exp() for _ in range(200)])
    assert 1 <= float(speeds.min()) < 2
    assert 15 < float(speeds.max()) <= 16
    torch.testing.assert_close(mixer.skip, torch.ones(2))


def _restarted(mixer: Mamba2Mixer) -> Mamba2Mixer:
    mixer.reset_rates()
    return mixer


@torch.no_grad()
def test_the_skip_is_of_the_token_that_is_written() -> None:
    """A memory whose time steps are next to nothing says nothing but its skip."""
    evicted = small_memory("mamba2", write_scope="evicted", conv=0, gate="none")
    memory: Any = evicted.memory  # type: ignore[union-attr]
    memory.step.bias.fill_(-50.0)
    x = torch.randn(1, 12, HIDDEN)
    y, _ = evicted(x, evicted.init_state(1, x.dtype, CPU), Layout.dense(0, 1, 12, CPU))
    shell = memory.shell
    value = nn.functional.silu(shell.projections.v(x)).unflatten(-1, (2, -1))
    said = shell.projections.o(shell.o_norm(value).flatten(2))
    # Window 7 and 2 sinks: token 2 leaves at 9.
    assert not bool(y[:, :9].any())
    torch.testing.assert_close(y[:, 9:], said[:, 2:5])


@pytest.mark.parametrize(
    ("values", "message"),
    [({"skipp": True}, "skip"), ({"qk_norm": "l1"}, "l1"), ({"block": 0}, "block = 0")],
)
def test_bad_options_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(AllMemError, match=message):
        Mamba2Options.from_dict(values)
