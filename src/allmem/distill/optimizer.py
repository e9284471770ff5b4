"""What the outer optimiser trains, at which rates: parameter groups, fp32 masters, the schedule.

AdamW under warmup-stable-decay (paper section 4). alpha learns several times faster than the rest,
since at its start of zero nothing else gets a gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from allmem.errors import AllMemError

__all__ = ["Masters", "make_optimizer", "parameter_groups", "warmup_stable_decay"]

WITHOUT_DECAY = ("bias", "_norm.", ".initial.", ".convolutions.", "alpha")
"""Parts of the names of parameters that decay would pull from where they belong: to zero."""


def parameter_groups(
    parameters: Mapping[str, Tensor], rate: float, alpha_rate: float, weight_decay: float
) -> list[dict[str, Any]]:
    """AdamW's groups. Each has ``names`` beside ``params``, and its full rate as ``peak``."""
    sorted_out: dict[str, dict[str, Tensor]] = {"alpha": {}, "plain": {}, "decayed": {}}
    for name, parameter in parameters.items():
        if name.endswith("alpha"):
            sorted_out["alpha"][name] = parameter
        elif parameter.dim() < 2 or any(part in name for part in WITHOUT_DECAY):
            sorted_out["plain"][name] = parameter
        else:
            sorted_out["decayed"][name] = parameter
    return [
        {
            "names": list(members),
            "params": list(members.values()),
            "peak": alpha_rate if group == "alpha" else rate,
            "weight_decay": weight_decay if group == "decayed" else 0.0,
        }
        for group, members in sorted_out.items()
        if members
    ]


def make_optimizer(
    parameters: Mapping[str, Tensor], rate: float, alpha_rate: float, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW over the groups above."""
    groups = parameter_groups(parameters, rate, alpha_rate, weight_decay)
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95))


def warmup_stable_decay(progress: float, warmup: float = 0.05, decay: float = 0.3) -> float:
    """The factor on the peak rate at ``progress`` in [0, 1] through a stage: up, level, down to 0.

    Args:
        warmup, decay: the shares of the stage in which the rate rises and falls, linearly.
    """
    rising = progress / warmup if warmup > 0 else 1.0
    falling = (1 - progress) / decay if decay > 0 else 1.0
    return max(0.0, min(1.0, rising, falling))


class Masters:
    """fp32 copies of the slow weights for the optimiser, where the model holds them in less.

    A bf16 weight cannot take a step of a thousandth of itself. Where the model's dtype is fp32 or
    wider the copy *is* the parameter.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        if not parameters:
            raise AllMemError("no layer of this model has a memory; there is nothing to train")
        self.parameters = dict(parameters)
        self.weights: dict[str, Tensor] = {
            name: p if _wide(p) else p.detach().float() for name, p in parameters.items()
        }

    def take_gradients(self) -> None:
        """Move the gradients of the model's weights to their masters."""
        for name, parameter in self.parameters.items():
            master = self.weights[name]
            if master is not parameter:
                master.grad = None if parameter.grad is None else parameter.grad.to(master.dtype)
                parameter.grad = None

    @torch.no_grad()
    def collect(self) -> None:
        """Take over weights that were changed in the model itself."""
        for name, parameter in self.parameters.items():
            if self.weights[name] is not parameter:
                self.weights[name].copy_(parameter)

    @torch.no_grad()
    def publish(self) -> None:
        """Write the masters into the model."""
        for name, parameter in self.parameters.items():
            if self.weights[name] is not parameter:
                parameter.copy_(self.weights[name])

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take over weights by name, and write them into the model."""
        for name, master in self.weights.items():
            master.copy_(weights[name])
        self.publish()


def _wide(parameter: Tensor) -> bool:
    return torch.promote_types(parameter.dtype, torch.float32) == parameter.dtype
