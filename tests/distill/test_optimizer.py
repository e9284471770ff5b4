"""Rates and groups of the outer optimiser."""

from __future__ import annotations

import pytest

from allmem.distill.optimizer import parameter_groups
from tests.distill.tiny import make_model


@pytest.mark.parametrize(
    ("mixer", "elsewhere"),
    [
        ("mesa", ["ridge"]),
        ("lizard", ["q_features", "k_features", "meta_keys", "meta_values"]),
        ("ttt_linear", ["norm_weight", "norm_bias", "initial.w1", "initial.b1"]),
        ("routed", ["scales", "parts.1.log_speed", "parts.1.shell.o_norm.weight"]),
        ("compressive", ["shell.o_norm.weight"]),
    ],
)
def test_only_linear_maps_of_other_memories_decay(mixer: str, elsewhere: list[str]) -> None:
    parameters = make_model(mixers=mixer).memory_parameters()
    decays = {
        name: group["weight_decay"] > 0
        for group in parameter_groups(parameters, 1e-3, 1e-2, 0.1)
        for name in group["names"]
    }
    for part in ["alpha", *elsewhere]:
        found = [name for name in decays if name.endswith(part)]
        assert found, part
        assert not any(decays[name] for name in found), part
    assert any(decays[name] for name in decays if name.endswith("projections.q.weight"))
    assert not any(name.endswith(("bias", "norm.weight")) for name in decays if decays[name])


def test_groups_hold_every_weight_once_and_decay_only_matrices() -> None:
    parameters = make_model().memory_parameters()
    groups = parameter_groups(parameters, 1e-3, 1e-2, 0.1)
    names = [name for group in groups for name in group["names"]]
    assert sorted(names) == sorted(parameters)
    for group in groups:
        for name in group["names"]:
            assert (group["lr"] == 1e-2) == name.endswith("alpha")
            kept = any(part in name for part in ("bias", "norm", "initial", "alpha", "convolution"))
            assert (group["weight_decay"] == 0) == kept, name
