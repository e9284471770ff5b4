"""What this implementation computes beyond the closed forms, which count only the keys that a query
sees: products that a mask throws away again.

``allmem.attention.blocks`` scores a block of queries against all keys in the reach of any of them;
a single token is scored against the whole ring; torch's causal attention, where it is not fused,
computes the square.
"""

from __future__ import annotations

from allmem.attention.blocks import BLOCK
from allmem.config import WindowConfig
from allmem.models.modeling import READ_BLOCK

__all__ = ["decoded_pairs", "square_pairs", "window_pairs"]


def window_pairs(tokens: int, window: WindowConfig, call: int = READ_BLOCK) -> int:
    """(query, key) pairs that the window attention scores in reading ``tokens`` tokens, ``call``
    in a call."""
    W, S = window.window, window.sinks
    pairs = 0
    for start in range(0, tokens, call):
        slots = min(call, tokens - start)
        if slots == 1:
            pairs += decoded_pairs(window)
            continue
        for first in range(0, slots, BLOCK):
            last = min(first + BLOCK, slots)
            lowest = max(first - W + 1, -min(W - 1, start))
            sinks = S if start + last > W else 0
            pairs += (last - first) * (last - lowest + sinks)
    return pairs


def decoded_pairs(window: WindowConfig) -> int:
    """Keys that a single token is scored against: every slot of the ring, written or not."""
    return window.window + window.sinks


def square_pairs(tokens: int) -> int:
    """Pairs of causal attention that computes all scores and masks half of them."""
    return tokens * tokens
