"""Gated Linear Attention: the contract, and where its decays start. Its rule is compared with the
code of others in ``test_recurrence``."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from allmem.errors import AllMemError
from allmem.mixers.base import Mixer
from allmem.mixers.conformance import MixerConformance
from allmem.mixers.gla import GlaMixer, GlaOptions
from tests.mixers.small import HIDDEN, small_memory

CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "original": {"conv": 0, "activation": False, "gate": "silu"},
    "unit-keys": {"qk_norm": "l2"},
    "faster": {"normaliser": 1.0, "decay_rank": 2},
    "evicted": {"write_scope": "evicted"},
}


class TestGla(MixerConformance):
    """The contract, with every option."""

    hidden_size = HIDDEN
    options: dict[str, Any]

    @pytest.fixture(autouse=True, params=CASES.values(), ids=CASES.keys())
    def choose(self, request: pytest.FixtureRequest) -> None:
        self.options = request.param

    def make_mixer(self) -> Mixer:
        return small_memory("gla", **self.options)


@pytest.mark.parametrize("normaliser", [1.0, 16.0])
def test_the_channels_of_every_head_start_between_slow_and_fast(normaliser: float) -> None:
    mixer = small_memory("gla", normaliser=normaliser, decay_start="tokens")
    assert isinstance(mixer, GlaMixer)
    log_decay = mixer.decay(torch.randn(2, 3, HIDDEN))
    assert log_decay.shape == (2, 2, 3, 6)
    for channels in log_decay.flatten(0, 2):
        torch.testing.assert_close(channels[0], torch.tensor(-0.001), rtol=1e-3, atol=0)
        torch.testing.assert_close(channels[-1], torch.tensor(-0.1), rtol=1e-3, atol=0)
        assert bool((channels.diff() < 0).all())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"normaliser": 0}, "normaliser = 0 must be positive"),
        ({"decay_rank": 0}, "decay_rank = 0 must be a positive whole number"),
        ({"normalizer": 2}, "normaliser"),
        ({"block": -1}, "block = -1 must be a positive whole number"),
    ],
)
def test_bad_options_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(AllMemError, match=message):
        GlaOptions.from_dict(values)
