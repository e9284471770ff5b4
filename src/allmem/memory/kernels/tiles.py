"""How much of a call one program of a kernel takes on, and so which calls the kernels can compute.

Plain Python: triton is not imported. The sizes are fixed by shape and dtype, not by timing runs:
one call gives the same bits each time, and nothing is timed while a graph is captured.

Letters: R rows, H memory heads, N tokens, d head size, h width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from allmem.errors import AllMemError
from allmem.kernels import interpreted, triton_cannot_run
from allmem.memory.network import MemoryNetwork
from allmem.memory.state import FastWeights

__all__ = [
    "LARGEST_HEAD",
    "LARGEST_WIDTH",
    "STAGES",
    "Tile",
    "cannot_run",
    "power_of_two",
    "require_contiguous",
    "step_tile",
]

LARGEST_HEAD = 256
"""Of d: a tile's output [tokens, d] stays in registers, in fp32."""
LARGEST_WIDTH = 4096
"""Of h: one program of the write holds whole rows. The other kernels go over h in blocks."""
STAGES = 2
"""Blocks of weights that are loaded or multiplied at a time."""


@dataclass(frozen=True)
class Tile:
    """What one program of ``step`` takes on. Every size is a power of two, of 16 at least, as the
    products of a GPU need them; what lies beyond the tensors is masked."""

    tokens: int
    head: int
    """d or more: heads are not split, so d = 192 computes as much as 256."""
    width: int
    """Of h, at a time."""
    warps: int
    itemsize: int
    """Bytes of an operand."""

    @property
    def shared(self) -> int:
        """Bytes of shared memory, at most: tokens and their errors, a block of each of the three
        matrices for every stage of the pipeline, and one change of layout."""
        tokens = self.tokens * self.head
        weights = 3 * self.head * self.width
        return self.itemsize * (2 * tokens + STAGES * weights + self.tokens * self.width)


def step_tile(d: int, dtype: torch.dtype) -> Tile:
    """Sizes with which no register spills on an H100, and, in bf16 with d up to 128, two programs
    share a multiprocessor, so that one computes while the other loads."""
    head = power_of_two(d)
    itemsize = dtype.itemsize
    if itemsize <= 2:
        return Tile(tokens=64, head=head, width=32, warps=4 if head <= 128 else 8, itemsize=2)
    # Products of full precision are not for tensor cores: what threads hold is the limit.
    return Tile(32, head, width=32 if head <= 128 else 16, warps=8, itemsize=itemsize)


def power_of_two(size: int) -> int:
    """The next one, 16 at least."""
    return max(16, 1 << (size - 1).bit_length())


def cannot_run(network: MemoryNetwork, q: Tensor, weights: FastWeights) -> str | None:
    """Why the kernels cannot compute a call with such tensors; ``None`` if they can.

    Args:
        network: whose matrices the weights are.
        q: [R, H, N, d], as k and v.
        weights: {matrix: [R, H, out, in]}.
    """
    if torch.is_grad_enabled() and any(t.requires_grad for t in (q, *weights.values())):
        return "the kernels have no backward pass"
    d, h = weights["down"].shape[-2:]
    if d > LARGEST_HEAD:
        return f"d = {d} is more than the {LARGEST_HEAD} that registers hold"
    if h > LARGEST_WIDTH:
        return f"h = {h} is more than {LARGEST_WIDTH}"
    if not network.swiglu and d != h:
        return f"a linear network maps heads to heads, not {h} to {d}"
    if any(not w.is_contiguous() for w in weights.values()):
        return "weights are not contiguous"
    reason = triton_cannot_run(q.device, q.dtype)
    if reason is not None or interpreted():
        return reason
    # Torch's stubs lack the limit that a kernel may ask for.
    properties: Any = torch.cuda.get_device_properties(q.device)
    need, have = step_tile(d, q.dtype).shared, properties.shared_memory_per_block_optin
    if need > have:
        return f"heads of {d} in {q.dtype} need {need} bytes of shared memory, of {have}"
    return None


def require_contiguous(tensors: Mapping[str, Tensor]) -> None:
    """Of tensors that a kernel writes in place, by name.

    Raises:
        AllMemError: if one is not contiguous.
    """
    for name, tensor in tensors.items():
        if not tensor.is_contiguous():
            raise AllMemError(
                f"kernels write contiguous tensors; {name} {tuple(tensor.shape)} has strides "
                f"{tensor.stride()}"
            )
