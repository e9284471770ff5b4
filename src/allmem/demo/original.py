"""What the converted model is compared with: the original, as transformers runs it.

Full attention and a cache that grows. It reads no further than it was trained to.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from allmem.reading import Progress

__all__ = ["OriginalReader"]


class OriginalReader:
    """An unconverted model, and what it has read."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self.cache = DynamicCache(config=self.model.config)
        self.ids: list[int] = []

    @property
    def nbytes(self) -> int:
        """Bytes of the cached keys and values."""
        kept = [t for layer in self.cache.layers for t in (layer.keys, layer.values)]
        return sum(t.numel() * t.element_size() for t in kept)

    @torch.no_grad()
    def read(
        self, ids: Sequence[int], block: int, report: Callable[[Progress], None] | None = None
    ) -> None:
        """Read tokens, reporting after every block as ``allmem.reading.read`` does."""
        begin = time.perf_counter()
        slots = torch.tensor([list(ids)])
        for first in range(0, len(ids), block):
            part = slots[:, first : first + block]
            self.model(part, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
            if report is not None:
                seconds = time.perf_counter() - begin
                report(Progress(first + part.shape[1], len(ids), seconds, self.nbytes))
        self.ids += ids

    def answer(self, tokenizer: Any, question: Sequence[int], max_new_tokens: int) -> str:
        """What it says to a question; it forgets the question afterwards."""
        prompt = torch.tensor([[*self.ids, *question]])
        output = self.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            past_key_values=copy.deepcopy(self.cache),
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )
        return tokenizer.decode(output[0, prompt.shape[1] :], skip_special_tokens=True).strip()
