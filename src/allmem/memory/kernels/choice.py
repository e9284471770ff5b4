"""Whether the kernels compute a call: if they were asked for and can."""

from __future__ import annotations

from torch import Tensor

from allmem.kernels import say_once, triton_chosen
from allmem.memory.kernels.tiles import cannot_run
from allmem.memory.network import MemoryNetwork
from allmem.memory.state import FastWeights

__all__ = ["chosen"]


def chosen(network: MemoryNetwork, q: Tensor, weights: FastWeights) -> bool:
    """Whether a call with such tensors is theirs; as ``cannot_run``, and never one that autograd
    records. If they were asked for and cannot compute it, that is said once."""
    if not triton_chosen():
        return False
    reason = cannot_run(network, q, weights)
    if reason is not None:
        say_once(reason)
    return reason is None
