"""Full attention, window with sinks, and AllMem side by side, over lengths: the table behind
``allmem cost`` and the paper's figure 3.

Two ratios are kept apart. Of *attention and memory layers* everything that replaces full attention
counts, projections included, and nothing else: this is what the paper compares (section 5.3). Of
the *whole model* MLP and head count too, which are the same on both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from allmem.cost.flops import Flops, mixing, readings
from allmem.models.modeling import AllMemForCausalLM

__all__ = ["COUNTED", "NOT_COUNTED", "Comparison", "Cost", "compare"]

COUNTED = (
    "matrix products and attention scores, a multiply-add as two; of causal attention the keys "
    "that a query sees; logits of the last token of a prefill and of each decoded token"
)
NOT_COUNTED = (
    "what is done number by number: norms, activations, rotary positions, softmax, convolutions, "
    "gates, and once a chunk normalisation, clip, momentum and write"
)


@dataclass(frozen=True)
class Cost:
    """Of one way to read, at one length."""

    prefill: Flops
    """Of reading so many tokens in all."""
    decode: Flops
    """Of one more token after them."""
    cache: int
    """Bytes kept of them."""


@dataclass(frozen=True)
class Comparison:
    """The three readings of a model, at several lengths."""

    lengths: tuple[int, ...]
    costs: dict[str, tuple[Cost, ...]]
    """By the reading's name (``full attention``, ``window and sinks``, ``AllMem``); one cost for
    every length."""
    sizes: dict[str, Any]
    """Window, sinks, chunk, memory options and precision of what was compared."""

    def prefill(self, reading: str, i: int, whole: bool = False) -> float:
        """FLOPs a token, on average over a prefill of the i-th length."""
        flops = self.costs[reading][i].prefill
        return (sum(flops.values()) if whole else mixing(flops)) / self.lengths[i]

    def decode(self, reading: str, i: int, whole: bool = False) -> float:
        """FLOPs of one more token after the i-th length."""
        flops = self.costs[reading][i].decode
        return sum(flops.values()) if whole else mixing(flops)

    def cache(self, reading: str, i: int) -> float:
        """Bytes kept of the i-th length."""
        return self.costs[reading][i].cache

    def to_dict(self) -> dict[str, Any]:
        """Everything, JSON-able."""
        return {
            "counted": COUNTED,
            "not_counted": NOT_COUNTED,
            "sizes": self.sizes,
            "rows": [
                {
                    "length": length,
                    "reading": name,
                    "prefill_flops": costs[i].prefill,
                    "decode_flops": costs[i].decode,
                    "layers_prefill_flops_per_token": self.prefill(name, i),
                    "layers_decode_flops": self.decode(name, i),
                    "model_prefill_flops_per_token": self.prefill(name, i, whole=True),
                    "model_decode_flops": self.decode(name, i, whole=True),
                    "cache_bytes": costs[i].cache,
                }
                for i, length in enumerate(self.lengths)
                for name, costs in self.costs.items()
            ],
        }


def compare(
    model: AllMemForCausalLM, lengths: Sequence[int], dtype: torch.dtype = torch.bfloat16
) -> Comparison:
    """Count the three readings of a converted model, which may stand on the meta device.

    Args:
        dtype: of keys and values; the fast weights are in fp32 whatever it is.

    Raises:
        AllMemError: for a model whose cost is not known (says why).
    """
    config = model.config
    costs = {
        reading.name: tuple(
            Cost(reading.prefill(n), reading.decode(n), reading.state_bytes(n, dtype))
            for n in lengths
        )
        for reading in readings(model)
    }
    sizes = {
        "window": config.window,
        "sinks": config.sinks,
        "chunk": config.chunk,
        "layers": config.layers,
        "mixer_options": config.mixer_options,
        "dtype": str(dtype).removeprefix("torch."),
    }
    return Comparison(tuple(lengths), costs, sizes)
