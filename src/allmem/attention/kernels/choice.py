"""Whether the kernel computes a call of one token: if it was asked for and can."""

from __future__ import annotations

from allmem.attention.state import RingState
from allmem.kernels import say_once, triton_cannot_run, triton_chosen

__all__ = ["LARGEST_HEAD", "cannot_run", "chosen"]

LARGEST_HEAD = 256
"""Of E and Ev: a program holds what it has read of values, of all heads that share them, in
registers, in fp32."""


def chosen(state: RingState) -> bool:
    """Whether a call of one token that every row takes is the kernel's; never one that autograd
    records. If it was asked for and cannot compute it, that is said once."""
    if not triton_chosen():
        return False
    reason = cannot_run(state)
    if reason is not None:
        say_once(reason)
    return reason is None


def cannot_run(state: RingState) -> str | None:
    """Why the kernel cannot compute a call with such a state; ``None`` if it can."""
    keys, values = state.keys, state.values
    size = max(keys.shape[-1], values.shape[-1])
    if size > LARGEST_HEAD:
        return f"attention heads of {size} are more than the {LARGEST_HEAD} that registers hold"
    if not (keys.is_contiguous() and values.is_contiguous()):
        return "keys and values are not contiguous"
    return triton_cannot_run(keys.device, keys.dtype)
