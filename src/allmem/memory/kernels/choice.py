"""Whether the kernels compute a call: if they were asked for and can."""

from __future__ import annotations

import warnings
from functools import cache

import torch
from torch import Tensor

from allmem.kernels import asked_for
from allmem.memory.kernels.tiles import cannot_run
from allmem.memory.network import MemoryNetwork
from allmem.memory.state import FastWeights

__all__ = ["chosen"]


def chosen(network: MemoryNetwork, q: Tensor, weights: FastWeights) -> bool:
    """Whether a call with such tensors is theirs; as ``cannot_run``, and never one that autograd
    records. If they were asked for and cannot compute it, that is said once."""
    # What is compiled is fused as it is.
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or not asked_for("triton"):
        return False
    reason = cannot_run(network, q, weights)
    if reason is not None:
        _say(reason)
    return reason is None


@cache
def _say(reason: str) -> None:
    warnings.warn(
        f"the kernels 'triton' were asked for, but {reason}; torch's operations compute instead",
        RuntimeWarning,
        stacklevel=3,
    )
