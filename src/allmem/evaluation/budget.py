"""How many texts a loaded model may remember at once: bytes of one, by its length, and bytes that
there are.

What is computed on the way (activations, logits) is bounded where it is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from allmem.evaluation.feeding import PlainModel, Source, layer_bytes
from allmem.mixers.layer import LayerMixer
from allmem.opening import OpenedModel

__all__ = ["Budget", "bytes_of_text", "free_bytes"]

CPU_BYTES = 4 << 30
"""Where what is free is not known."""
SHARE = 0.5
"""Of what is free on a GPU: texts that are picked out of a batch stand beside it for a moment, and
activations need room too."""


@dataclass(frozen=True)
class Budget:
    """Bytes that texts may take up together."""

    bytes: int
    of_text: Callable[[int], int]
    """Bytes of a text, by its tokens."""

    def texts(self, tokens: int) -> int:
        """How many texts of so many tokens there may be; one may always be."""
        return max(1, self.bytes // max(1, self.of_text(tokens)))

    def parts(self, sizes: Sequence[tuple[int, int]]) -> list[list[int]]:
        """Prompts, as their indices, in parts that are answered together.

        Args:
            sizes: of each prompt its tokens, and those of its answer at most.
        """
        parts: list[list[int]] = []
        longest = 0, 0
        for i, (prompt, answer) in enumerate(sizes):
            # A batch is as wide as its longest prompt, and then as its longest answer.
            grown = max(longest[0], prompt), max(longest[1], answer)
            if parts and len(parts[-1]) < self.texts(sum(grown)):
                parts[-1].append(i)
                longest = grown
            else:
                parts.append([i])
                longest = prompt, answer
        return parts


def free_bytes(device: torch.device) -> int:
    """What texts may take up on a device, as it is now."""
    if device.type != "cuda":
        return CPU_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    # Torch holds on to what it no longer uses.
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(SHARE * (free + kept))


def bytes_of_text(opened: Source, memory: bool = True) -> Callable[[int], int]:
    """What a model remembers of a text, by its tokens, in bytes.

    Args:
        memory: whether a converted one reads with its memories.
    """
    if isinstance(opened, PlainModel):
        return _of_plain(opened)
    return _of_converted(opened, memory)


def _of_converted(opened: OpenedModel, memory: bool) -> Callable[[int], int]:
    model, nowhere = opened.model, torch.device("meta")
    embeddings: Any = model.get_input_embeddings()
    mixers, dtype = model.mixers(), embeddings.weight.dtype

    def difference(mixed: LayerMixer) -> int:
        """Between rings of this reader's window and of the model's own. They are as large from the
        start as they ever are."""
        state = mixed.init_state(1, dtype, nowhere, opened.window)
        rings = [state.attention, state.context if memory else None]
        own = mixed.attention.state_bytes(0, dtype)
        return sum(ring.nbytes - own for ring in rings if ring is not None)

    more = sum(difference(mixed) for mixed in mixers)

    def of_text(tokens: int) -> int:
        kept = (mixed if memory else mixed.attention for mixed in mixers)
        return more + sum(mixer.state_bytes(tokens, dtype) for mixer in kept)

    return of_text


@torch.no_grad()
def _of_plain(opened: PlainModel) -> Callable[[int], int]:
    """Measured on one token: configurations name the sizes of keys and values in many ways."""
    cache = opened.new_cache()
    token = torch.zeros(1, 1, dtype=torch.int64, device=opened.model.device)
    opened.model(input_ids=token, past_key_values=cache, use_cache=True)
    layers: list[tuple[int, int | None]] = []
    for layer in cache.layers:
        # A recurrent layer's state is as large after one token as after many.
        reach: int | None = None if isinstance(layer, DynamicLayer) else 1
        if isinstance(layer, DynamicSlidingWindowLayer):
            reach = layer.sliding_window
        layers.append((layer_bytes(layer), reach))

    def of_text(tokens: int) -> int:
        return sum(n * (tokens if reach is None else min(tokens, reach)) for n, reach in layers)

    return of_text
