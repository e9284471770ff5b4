"""What the outer optimiser trains and at which rates: AdamW's parameter groups.

alpha learns several times faster than the rest, since at its start of zero nothing else gets a
gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["make_optimizer", "parameter_groups"]

DECAYED = ("weight", "down", "up")
"""What the matrices of linear maps are called, last in their names. Decay pulls to zero, which is
no place for what starts elsewhere: norms, starts of fast weights, features, scales."""


def parameter_groups(
    parameters: Mapping[str, Tensor], rate: float, alpha_rate: float, weight_decay: float
) -> list[dict[str, Any]]:
    """AdamW's groups; each has ``names`` beside ``params``."""
    sorted_out: dict[str, dict[str, Tensor]] = {"decayed": {}, "plain": {}, "alpha": {}}
    for name, parameter in parameters.items():
        if name.endswith("alpha"):
            sorted_out["alpha"][name] = parameter
        elif _is_projection(name, parameter):
            sorted_out["decayed"][name] = parameter
        else:
            sorted_out["plain"][name] = parameter
    return [
        {
            "names": list(members),
            "params": list(members.values()),
            "lr": alpha_rate if group == "alpha" else rate,
            "weight_decay": weight_decay if group == "decayed" else 0.0,
        }
        for group, members in sorted_out.items()
        if members
    ]


def _is_projection(name: str, parameter: Tensor) -> bool:
    """Whether it is the matrix of a linear map, and not one of scales, one row for each head."""
    *module, last = name.split(".")
    return parameter.dim() == 2 and last in DECAYED and not module[-1].endswith("norm")


def make_optimizer(
    parameters: Mapping[str, Tensor], rate: float, alpha_rate: float, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW over the groups above (paper section 4)."""
    groups = parameter_groups(parameters, rate, alpha_rate, weight_decay)
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95))
