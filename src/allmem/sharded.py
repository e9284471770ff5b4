"""Tensors of which every process holds a part (FSDP2), seen as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = ["full_tensor", "like"]


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded, detached; all processes must ask."""
    tensor = tensor.detach()
    sharded = _sharded(tensor)
    return tensor if sharded is None else sharded.full_tensor()


def like(whole: Tensor, template: Tensor) -> Tensor:
    """A whole tensor placed, and if need be sharded, as ``template`` is."""
    whole = whole.to(template.device)
    sharded = _sharded(template)
    if sharded is None:
        return whole
    from torch.distributed.tensor import distribute_tensor

    # Every process has the whole, so nothing needs to be sent.
    return distribute_tensor(whole, sharded.device_mesh, sharded.placements, src_data_rank=None)


def _sharded(tensor: Tensor) -> DTensor | None:
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return None
    from torch.distributed.tensor import DTensor

    return tensor if isinstance(tensor, DTensor) else None
