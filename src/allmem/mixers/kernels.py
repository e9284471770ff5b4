"""The one place that picks who computes a matrix-valued recurrence: our products, which run
everywhere (``allmem.mixers.recurrence``), or the kernels of flash-linear-attention.

The kernels take bf16 or fp16 on a CUDA device and keep the state in fp32. They are never picked by
themselves, since their rounding is another (``allmem.kernels``); calls that they cannot compute
stay with ours.

Letters: R rows, H heads, N tokens, d size of keys, dv of values.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import torch
from torch import Tensor

from allmem.kernels import asked_for

__all__ = ["delta_kernel", "linear_kernel"]

LINEAR = ("simple_gla", "simple_gla", "gla")
DELTA = ("delta_rule", "gated_delta_rule", "kda")
"""What their rules are called: without decays, with one for a head, with one for a channel."""
NARROW = (torch.bfloat16, torch.float16)
LARGEST = 256
"""Of d and dv: what one tile of the kernels holds."""
STRONGEST = -60.0
"""The least logarithm of a decay that they are given, which leaves 1e-26: they subtract sums of
logarithms, in which -inf would be NaN."""

Kernel = Callable[..., tuple[Tensor, Tensor]]


def linear_kernel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    state: Tensor,
    narrow: torch.dtype | None,
) -> tuple[Tensor, Tensor] | None:
    """``recurrence.linear_rule`` by a kernel; ``None`` if it is not to be, or cannot be.

    Args:
        q, k, v, log_decay, state: as there.
        narrow: the dtype of what q, k and v were computed from; ``None`` for none.
    """
    return _run(LINEAR, q, k, v, log_decay, state, narrow)


def delta_kernel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rate: Tensor,
    log_decay: Tensor | None,
    state: Tensor,
    narrow: torch.dtype | None,
) -> tuple[Tensor, Tensor] | None:
    """``recurrence.delta_rule`` by a kernel; as ``linear_kernel``."""
    return _run(DELTA, q, k, v, log_decay, state, narrow, rate)


def _takes(q: Tensor, v: Tensor, narrow: torch.dtype) -> bool:
    return (
        asked_for("fla")
        and _on_gpu(q)
        and narrow in NARROW
        and q.shape[2] > 0
        and max(q.shape[-1], v.shape[-1]) <= LARGEST
    )


def _on_gpu(q: Tensor) -> bool:
    return q.is_cuda


def _kernel(rule: str) -> Kernel:
    kernel: Kernel = getattr(import_module(f"fla.ops.{rule}"), f"chunk_{rule}")
    return kernel


def _run(
    rules: tuple[str, str, str],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    state: Tensor,
    narrow: torch.dtype | None,
    rate: Tensor | None = None,
) -> tuple[Tensor, Tensor] | None:
    """Theirs is [R, N, H, ...]; the factor on queries is in ours already.

    Args:
        rules: what they are called without decays, with one for a head, with one for a channel.
    """
    if narrow is None or not _takes(q, v, narrow):
        return None
    q, k, v = (t.transpose(1, 2).to(narrow) for t in (q, k, v))
    rule, rates = rules[0], {}
    if log_decay is not None:
        rule = rules[log_decay.dim() - 2]
        rates["g"] = log_decay.float().clamp(min=STRONGEST).transpose(1, 2)
    if rate is not None:
        rates["beta"] = rate.transpose(1, 2).to(narrow)
    read, after = _kernel(rule)(
        q, k, v, **rates, scale=1.0, initial_state=state.float(), output_final_state=True
    )
    return read.transpose(1, 2).to(state.dtype), after.to(state.dtype)
