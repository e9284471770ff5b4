"""Two products that a CPU takes many times too long for, done another way. Results are the same up
to rounding.

*The last position of a long text.* Models slice hidden states before the head, and of a bfloat16
slice that keeps the strides of the whole torch's product takes many times as long: with a
vocabulary of 49,152 and D = 576 it was 140 ms for the last position of 2,048 in place of 9.

*One token alone.* Every weight is then read for a single multiplication. Of a bfloat16 matrix and
one vector torch has a product of its own, which keeps pace with the machine's memory; but it asks
oneDNN first, whose product takes twice as long (matrices of 576 to 49,152 rows: 12 to 15 GB/s in
place of 5 to 7).

Both with torch 2.13 on one core of an AMD EPYC.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["fast_products", "one_token_products"]

MARK = "_allmem_fast_products"

_switched_off = False


def fast_products(model: nn.Module, head: nn.Module | None = None) -> None:
    """Let the linear maps of a model take single tokens, and its head slices, the fast way on CPUs.

    Args:
        model: whose ``nn.Linear`` modules are meant: those that it has now, and not those on a GPU,
            which would pay for being asked.
        head: what logits come from.
    """
    if head is not None and _once(head, "slices"):
        head.register_forward_pre_hook(_on_its_own)
    for module in model.modules():
        if not isinstance(module, nn.Linear) or module.weight.device.type == "cuda":
            continue
        if _once(module, "tokens"):
            module.register_forward_pre_hook(_without_onednn)
            # Also after an error, or oneDNN would stay off.
            module.register_forward_hook(_with_onednn, always_call=True)


@contextmanager
def one_token_products(x: Tensor) -> Iterator[None]:
    """Take single tokens the fast way in compiled code, which knows nothing of hooks.

    Args:
        x: what the maps of the block will get the like of.
    """
    # Not its ``flags``, which set more than this and warn of it.
    backend: Any = torch.backends.mkldnn
    before = backend.enabled
    try:
        backend.enabled = before and not _is_one_token(x)
        yield
    finally:
        backend.enabled = before


def _is_one_token(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16 and x.device.type == "cpu" and x.numel() == x.shape[-1]


def _once(module: nn.Module, what: str) -> bool:
    done = getattr(module, MARK, ())
    if what in done:
        return False
    setattr(module, MARK, (*done, what))
    return True


def _on_its_own(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    x = inputs[0]
    if not isinstance(x, Tensor) or x.device.type != "cpu" or x.stride() == _dense(x.shape):
        return None
    # ``contiguous`` would return x: strides of dimensions of size one do not count for it.
    return (x.new_empty(x.shape).copy_(x), *inputs[1:])


def _dense(shape: Any) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def _without_onednn(_: nn.Module, inputs: tuple[Any, ...]) -> None:
    """For one product. The switch is the process's: another thread may meet it off, and is then
    slower and as exact."""
    global _switched_off
    if torch.compiler.is_compiling():
        return
    x = inputs[0]
    if _is_one_token(x):
        backend: Any = torch.backends.mkldnn
        if backend.enabled:
            backend.enabled, _switched_off = False, True


def _with_onednn(*_: Any) -> None:
    global _switched_off
    if torch.compiler.is_compiling():
        return
    if _switched_off:
        backend: Any = torch.backends.mkldnn
        backend.enabled, _switched_off = True, False
