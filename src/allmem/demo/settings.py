"""What the demo does to which model, and for how long.

The memory that ships is read as it is. Where one is distilled instead, it is by the recipe that
three minutes were found to do most with (``docs/notes/distillation.md``).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch

from allmem.distill import DistillConfig

__all__ = ["DemoSettings", "faster_dtype"]

MEMORY_LAYERS = (15, 17, 18, 20, 21, 22, 23, 24, 28)
"""Of SmolLM2-135M: where the window costs most, by giving each layer full attention in turn."""


@dataclass(frozen=True)
class DemoSettings:
    """Sizes and rates. The defaults are for SmolLM2-135M-Instruct on two CPU cores."""

    minutes: float | None = None
    """Of distillation; ``None``: the memory that ships."""
    shipped_window: int | None = 48
    """That the memory that ships is read with: so small that a page is gone when it is asked about.
    ``None`` for what its file says."""
    window: int = 128
    """This and what follows it up to ``evaluated`` is for distillation alone."""
    sinks: int = 4
    chunk: int = 128
    layers: tuple[int, ...] | None = MEMORY_LAYERS
    """Layers that get a memory; the others keep the window alone. ``None`` for all."""
    memory: dict[str, Any] = field(default_factory=lambda: {"heads": 3, "head_dim": 64})
    length: int = 768
    """Tokens of a training sequence."""
    solve_share: float = 0.3
    kl_lr: float = 2e-4
    held_out: float = 0.15
    """Share of the learned book, its end, that is kept back to judge by."""
    evaluated: int = 8
    """Held-out sequences of each book."""
    documents: int = 4
    """That hide facts."""
    facts: int = 6
    """In each of them."""
    passage: int = 600
    """Characters around the answer to a question about the book."""
    full_tokens: int = 7680
    """How far full attention reads: SmolLM2 was trained on 8192 positions; answers need some."""
    block: int = 512
    """Tokens between two measurements of a reading."""
    answer_tokens: int = 24
    seed: int = 0

    def mixers(self, layers: int) -> list[str]:
        """What stands in each of a model's layers."""
        chosen = range(layers) if self.layers is None else self.layers
        return ["allmem" if i in chosen else "window" for i in range(layers)]

    def distillation(self) -> DistillConfig:
        """The training run."""
        assert self.minutes is not None
        return DistillConfig(
            minutes=self.minutes,
            stage="all",
            solve_share=self.solve_share,
            kl_lr=self.kl_lr,
            seed=self.seed,
        )


def faster_dtype() -> torch.dtype:
    """bf16 where the processor multiplies in it faster than in fp32, else fp32."""

    def seconds(dtype: torch.dtype) -> float:
        x, w = torch.ones(512, 576, dtype=dtype), torch.ones(1536, 576, dtype=dtype)
        times = []
        for _ in range(5):
            begin = time.perf_counter()
            torch.nn.functional.linear(x, w)
            times.append(time.perf_counter() - begin)
        return min(times)

    return min((torch.bfloat16, torch.float32), key=seconds)
