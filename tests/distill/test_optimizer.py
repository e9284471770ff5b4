"""Rates and groups of the outer optimiser."""

from __future__ import annotations

from allmem.distill.optimizer import parameter_groups
from tests.distill.tiny import make_model


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
