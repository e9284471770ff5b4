"""The teacher's pass on a CUDA stream of its own, while the student reads the same batch.

A teacher makes few large products and a student with memories many small ones, one chunk after the
other, which leave most of a GPU idle. Neither needs the other before the loss.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from allmem.distill.targets import FullTarget
from allmem.distill.teacher import Target

__all__ = ["begun_aside", "has_streams"]


def has_streams(device: torch.device) -> bool:
    """Whether a device can do two things at a time."""
    return device.type == "cuda"


def begun_aside(work: Callable[[], Target], device: torch.device) -> Callable[[], Target]:
    """Begin ``work`` on another stream; what is returned waits for it.

    Args:
        work: changes nothing that is in use meanwhile, and reads nothing back from the device,
            which would wait for it.
        device: with CUDA streams.
    """
    now, aside = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    aside.wait_stream(now)
    with torch.cuda.stream(aside):
        target = work()

    def joined() -> Target:
        after = torch.cuda.current_stream(device)
        after.wait_stream(aside)
        # Its memory belongs to the other stream, which must not use it anew before this one is
        # done.
        for tensor in _tensors(target):
            tensor.record_stream(after)
        return target

    return joined


def _tensors(target: Target) -> list[Tensor]:
    if isinstance(target, FullTarget):
        return [target.hidden]
    return [target.ids, target.log_probs]
