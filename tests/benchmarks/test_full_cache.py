"""A cache with room computes what transformers' own does."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from benchmarks.full_cache import kv_bytes, roomy, roomy_random
from benchmarks.shapes import SHAPES, plain


@torch.no_grad()
def test_decoding_with_room_gives_the_same_logits() -> None:
    model = plain(SHAPES["tiny"], torch.float32)
    ids = torch.randint(10, 500, (2, 24), generator=torch.Generator().manual_seed(0))
    ours = DynamicCache()
    model(input_ids=ids[:, :20], past_key_values=ours, use_cache=True)
    theirs = roomy(ours, 4)
    for i in range(20, 24):
        token = ids[:, i : i + 1]
        found, right = (
            model(input_ids=token, past_key_values=cache, use_cache=True).logits
            for cache in (theirs, ours)
        )
        assert torch.equal(found, right)
    with pytest.raises(ValueError, match="do not fit"):
        model(input_ids=ids[:, :1], past_key_values=theirs, use_cache=True)


def test_a_random_cache_has_the_bytes_of_its_tokens() -> None:
    model = plain(SHAPES["tiny"])
    cache = roomy_random(model, 7, 3, rows=2)
    assert cache.get_seq_length() == 7
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    # Two layers of two KV heads of 16, keys and values, two bytes each.
    assert kv_bytes(model) == 2 * 2 * 2 * 16 * 2
    assert held == 2 * 7 * kv_bytes(model)
