"""What a step of a run reports, whichever stage takes it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from allmem.distill.config import Span
from allmem.models.modeling import AllMemForCausalLM
from allmem.sharded import full_tensor

__all__ = ["Place", "Step", "measure"]


@dataclass(frozen=True)
class Step:
    """What a step reports."""

    number: int
    """In the whole run, from 1."""
    stage: str
    loss: float
    """KL in nats, or the mean normalised error of the layers; before the step changed anything."""
    gradient: float
    """Norm before clipping."""
    alpha: float
    """Mean |alpha| over layers and channels, after the step."""
    eta: float
    """Mean inner rate of a token at ``W_eta x = 0``, before it is scaled with the chunk."""
    rate: float
    """Peak rate of the memory's weights, times the schedule's factor."""
    tokens: int
    """Of the whole run so far."""
    tokens_per_second: float
    progress: float
    """Share of the run's steps that are done."""
    seconds_left: float


@dataclass(frozen=True)
class Place:
    """Where a stage stands in its run."""

    span: Span
    before: int = 0
    """Steps of earlier stages."""
    total: int | None = None
    """Steps of the run; ``None`` for this stage's."""

    @property
    def steps(self) -> int:
        return self.span.steps if self.total is None else self.total


def measure(
    model: AllMemForCausalLM,
    place: Place,
    done: int,
    loss: float,
    tokens_per_step: float,
    seconds: float,
    since: int = 0,
    gradient: float = 0.0,
    rate: float = 0.0,
) -> Step:
    """A step's report.

    Args:
        done: steps of the stage that are done; those up to ``since`` took none of the seconds.
    """
    alphas, rates = [], []
    for name, parameter in model.memory_parameters().items():
        if name.endswith("alpha"):
            alphas.append(full_tensor(parameter).abs().flatten())
        elif name.endswith("unit.eta.bias"):
            rates.append(nn.functional.softplus(full_tensor(parameter)).flatten())
    number = place.before + done
    pace = seconds / max(done - since, 1)
    return Step(
        number=number,
        stage=place.span.stage,
        loss=loss,
        gradient=gradient,
        alpha=float(torch.cat(alphas).mean()),
        eta=float(torch.cat(rates).mean()) if rates else 0.0,
        rate=rate,
        tokens=round(number * tokens_per_step),
        tokens_per_second=tokens_per_step / max(pace, 1e-9),
        progress=number / place.steps,
        seconds_left=pace * (place.steps - number),
    )
