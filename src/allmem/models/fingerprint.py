"""Telling models apart by their weights without reading all of them; tokenizers by their words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from allmem.sharded import full_tensor

__all__ = ["fingerprint", "vocabulary"]

SAMPLES = 256
"""Values taken from each tensor, evenly spaced."""


@torch.no_grad()
def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A hash of names, shapes and evenly spaced values.

    Values are rounded to bf16 first, so that a model has one fingerprint whether it was loaded in
    bf16 or in fp32. Training or fine-tuning changes nearly every value, so a few hundred per tensor
    tell.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = full_tensor(tensors[name]).reshape(-1)
        stride = max(1, tensor.numel() // SAMPLES)
        sample = tensor[::stride][:SAMPLES].to(torch.bfloat16).cpu().contiguous()
        digest.update(f"{name} {tuple(tensors[name].shape)}".encode())
        digest.update(sample.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:32]


def vocabulary(tokenizer: Any) -> dict[str, Any]:
    """What a file says about a tokenizer: how many tokens it knows, and a hash of them."""
    known = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=False)
    digest = hashlib.sha256(known.encode("utf-8", "surrogatepass")).hexdigest()
    return {"size": len(tokenizer), "fingerprint": digest[:16]}
