"""What a training run needs to go on as if it had never stopped: one safetensors file, no pickle.

It holds the fp32 masters, AdamW's moments and torch's random state as tensors, and the place in
the run with its configuration as JSON. The file is replaced as a whole, so a run that is killed
while it writes goes on from the one before.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from allmem.distill.optimizer import Masters
from allmem.errors import AllMemError
from allmem.files import read_tensors, write_tensors

__all__ = ["Place", "load_checkpoint", "restore_moments", "save_checkpoint"]

KIND = "training"


@dataclass
class Place:
    """How far a run is."""

    stage: str = ""
    """The stage of the optimiser's moments; empty before the first step."""
    step: int = 0
    sequences: int = 0
    """Sequences read: where in the text the run is."""
    tokens: int = 0
    seconds: float = 0.0
    """Spent in training, pauses between resumed runs left out."""


def save_checkpoint(
    path: str | os.PathLike[str],
    masters: Masters,
    optimizer: torch.optim.Optimizer | None,
    sums: dict[str, Tensor],
    place: Place,
    run: dict[str, Any],
) -> None:
    """Write a checkpoint.

    Args:
        sums: of the stage ``solve``; empty outside of it.
        run: what a resumed run must agree on.

    Raises:
        AllMemError: if it cannot be written; the one before is unharmed then.
    """
    tensors = {f"weights.{name}": w for name, w in masters.weights.items()}
    for name, moments in _moments(optimizer).items():
        tensors |= {f"optimizer.{name}.{key}": value for key, value in moments.items()}
    tensors |= {f"solve.{name}": value for name, value in sums.items()}
    tensors["random"] = torch.get_rng_state()
    write_tensors(path, KIND, tensors, {"place": asdict(place), "run": run})


def load_checkpoint(
    path: str | os.PathLike[str], masters: Masters, run: dict[str, Any]
) -> tuple[Place, dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Read a checkpoint into the masters and the model.

    Returns:
        The place; the optimiser's moments by parameter, see ``restore_moments``; and ``sums``.

    Raises:
        AllMemError: if the file is damaged or belongs to a run of another configuration, naming the
            first difference.
    """
    tensors, header = read_tensors(path, KIND)
    _check_same_run(path, header["run"], run)
    missing = sorted(
        f"weights.{name}" for name in masters.weights if f"weights.{name}" not in tensors
    )
    if missing:
        raise AllMemError(f"{path} lacks {missing[0]}; it was written by another version of allmem")
    masters.load({name: tensors[f"weights.{name}"] for name in masters.weights})
    moments: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            name, _, moment = key.removeprefix("optimizer.").rpartition(".")
            moments.setdefault(name, {})[moment] = value
    torch.set_rng_state(tensors["random"])
    sums = {k.removeprefix("solve."): t for k, t in tensors.items() if k.startswith("solve.")}
    return Place(**header["place"]), moments, sums


def restore_moments(
    optimizer: torch.optim.Optimizer, moments: dict[str, dict[str, Tensor]]
) -> None:
    """Give an optimiser over the same parameters the moments of a checkpoint."""
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            if name in moments:
                optimizer.state[parameter] = {
                    key: value if key == "step" else value.to(parameter.device)
                    for key, value in moments[name].items()
                }


def _moments(optimizer: torch.optim.Optimizer | None) -> dict[str, dict[str, Tensor]]:
    if optimizer is None:
        return {}
    return {
        name: dict(optimizer.state[parameter])
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        if parameter in optimizer.state
    }


def _check_same_run(path: Any, saved: dict[str, Any], now: dict[str, Any]) -> None:
    for key in sorted({*saved, *now}):
        if saved.get(key) != now.get(key):
            raise AllMemError(
                f"{path} was written with {key} = {saved.get(key)!r}, now it is {now.get(key)!r}; "
                "resume with the same options, or choose another output folder for a new run"
            )
