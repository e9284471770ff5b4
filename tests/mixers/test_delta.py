"""The memories that write by the delta rule: the contract, and the layer of transformers. Their
rules are compared with the code of others in ``test_recurrence``."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from transformers import DynamicCache, Qwen3NextConfig
from transformers.models.qwen3_next import modeling_qwen3_next
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

from allmem.errors import AllMemError
from allmem.layout import Layout
from allmem.mixers.base import Mixer
from allmem.mixers.conformance import MixerConformance, randomise
from allmem.mixers.delta import DeltaMixer, DeltaOptions
from tests.mixers.small import HIDDEN, small_memory

CPU = torch.device("cpu")
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "deltanet": ("deltanet", {}),
    "gated": ("gated_deltanet", {}),
    "channels": ("kda", {}),
    "channels-low-rank": ("kda", {"decay_rank": 2}),
    "plain": ("gated_deltanet", {"conv": 0, "activation": False}),
    "silu-gate": ("gated_deltanet", {"gate": "silu"}),
    "low-rank": ("gated_deltanet", {"projections": "lowrank", "gate": "none"}),
    "evicted": ("gated_deltanet", {"write_scope": "evicted"}),
    "evicted-channels": ("kda", {"write_scope": "evicted"}),
    "ahn": ("ahn_deltanet", {}),
    "ahn-gated": ("ahn_gated_deltanet", {}),
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
        return small_memory(self.name, **self.options)


def delta(name: str, **options: Any) -> DeltaMixer:
    mixer = small_memory(name, **options)
    assert isinstance(mixer, DeltaMixer)
    return mixer


@torch.no_grad()
def theirs_with_weights_of(ours: DeltaMixer) -> tuple[Qwen3NextGatedDeltaNet, Qwen3NextConfig]:
    """transformers' layer with as many heads of keys as of values."""
    shell = ours.shell
    heads = shell.heads
    config = Qwen3NextConfig(
        hidden_size=HIDDEN,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
        linear_num_key_heads=heads,
        linear_num_value_heads=heads,
        linear_key_head_dim=shell.key_dim,
        linear_value_head_dim=shell.value_dim,
        linear_conv_kernel_dim=shell.options.conv,
        rms_norm_eps=1e-6,
    )
    theirs = Qwen3NextGatedDeltaNet(config, 0)
    projections, taps = shell.projections, shell.convolutions

    def by_head(*modules: Any) -> torch.Tensor:
        """Head by head, in each of them one module after the other."""
        weights = [m.weight.unflatten(0, (heads, -1)) for m in modules]
        return torch.cat(weights, 1).flatten(0, 1)

    qkvz = by_head(projections.q, projections.k, projections.v, projections.g)
    theirs.in_proj_qkvz.weight.copy_(qkvz)
    theirs.in_proj_ba.weight.copy_(by_head(ours.rate, ours.decay))
    # Their last tap is that of the current token.
    kernel = torch.cat([taps["q"], taps["k"], taps["v"]], 1).flip(0)
    theirs.conv1d.weight.copy_(kernel.T[:, None])
    theirs.dt_bias.copy_(ours.decay.bias)
    theirs.A_log.copy_(ours.log_speed)
    theirs.norm.weight.copy_(shell.o_norm.weight[0])
    theirs.out_proj.weight.copy_(projections.o.weight)
    return theirs.eval(), config


@pytest.fixture
def _by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where fla and triton are installed transformers calls their GPU kernels, on a CPU too."""
    for name in ("torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"):
        monkeypatch.setattr(
            modeling_qwen3_next, name, inspect.unwrap(getattr(modeling_qwen3_next, name))
        )


@pytest.mark.usefixtures("_by_torch")
@pytest.mark.parametrize(
    "calls", [[90], [7, 83], [1] * 90, [81, *[1] * 9]], ids=["prefill", "two", "decode", "both"]
)
@torch.no_grad()
def test_the_layer_is_that_of_qwen3_next(calls: list[int]) -> None:
    """To 4e-6 in fp32, in which theirs computes whatever it is given, at outputs of up to four.

    They read many tokens in chunks of 64, and one token by the recurrence.
    """
    ours = delta("gated_deltanet", gate="silu", block=16)
    randomise(ours)
    # They have one norm for all heads, and no bias here.
    ours.shell.o_norm.weight.copy_(ours.shell.o_norm.weight[:1].expand(2, -1))
    ours.rate.bias.zero_()
    theirs, config = theirs_with_weights_of(ours)
    x = torch.randn(2, 90, HIDDEN)
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
    matrix = cache.layers[0].recurrent_states[0]
    torch.testing.assert_close(state.matrix, matrix, rtol=0, atol=4e-6)


@torch.no_grad()
@pytest.mark.parametrize("name", ["gated_deltanet", "kda"])
def test_decays_start_between_slow_and_fast(name: str) -> None:
    mixer = delta(name, decay_start="tokens")
    decays = mixer._log_decay(mixer.decay(torch.randn(1, 3, HIDDEN)))
    # [H] of a token, or [H, d]: over the heads, or over the channels of each.
    for spread in decays[0, :, 0].reshape(-1, 6 if name == "kda" else 2):
        torch.testing.assert_close(spread[0], torch.tensor(-0.001), rtol=1e-3, atol=0)
        torch.testing.assert_close(spread[-1], torch.tensor(-0.1), rtol=1e-3, atol=0)
    torch.testing.assert_close(decays[:, :, 0], decays[:, :, 2])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"qk_norm": "rms"}, "qk_norm = 'rms' lets keys grow longer than one"),
        ({"qk_norm": "none"}, "leave qk_norm = 'l2'"),
        ({"decay": "heads"}, "head"),
        ({"decay_rank": 0}, "decay_rank = 0 must be a positive whole number"),
    ],
)
def test_bad_options_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(AllMemError, match=message):
        DeltaOptions.from_dict(values)
