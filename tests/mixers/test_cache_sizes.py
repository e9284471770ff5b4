"""KV policies at equal bytes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from allmem import AllMemError
from allmem.mixers.attention import AttentionShape
from allmem.mixers.cache_sizes import equal_caches
from tests.models.tiny import C, read, text, tiny_model

SMOLLM2 = AttentionShape(hidden_size=576, query_heads=9, kv_heads=3, head_dim=64)
QWEN3 = AttentionShape(hidden_size=1024, query_heads=16, kv_heads=8, head_dim=128)
NAMES = ["window", "blocks", "eviction", "ladder"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [SMOLLM2, QWEN3], ids=["smollm2", "qwen3"])
@pytest.mark.parametrize("window", [200, 264, 777, 1032, 4224])
def test_every_policy_comes_within_five_percent(
    window: int, shape: AttentionShape, dtype: torch.dtype
) -> None:
    # As many bytes as a window, and half as many again for a memory.
    target = 3 * window * shape.kv_heads * shape.head_dim * dtype.itemsize
    options = {"eviction": {"priority": 24}}
    found = equal_caches(target, shape, dtype, sinks=4, options=options)
    assert list(found) == NAMES
    for cache in found.values():
        assert 0.95 * target <= cache.bytes <= target


def test_models_with_these_slots_keep_these_bytes() -> None:
    memory = tiny_model(mixers="allmem", chunk=C)
    mixed = memory.mixers()[0]
    target, shape = mixed.state_bytes(1, torch.float32), mixed.attention.shape
    own: dict[str, dict[str, Any]] = {"eviction": {"priority": 3}, "blocks": {"block": 2}}
    caches = equal_caches(target, shape, torch.float32, sinks=2, options=own)
    for name in ("ladder", "eviction", "blocks"):
        options = {**own.get(name, {}), "sinks": 2, "slots": caches[name].slots}
        model = tiny_model(mixers=name, mixer_options={name: options})
        state = read(model, text(1, 4 * caches[name].slots)).states[0].attention
        device = state.nbytes
        if name == "blocks":
            attention = model.mixers()[0].attention
            fetched = 2 * attention.sizes(attention.window).retrieved
            slot = 2 * shape.kv_heads * shape.head_dim * 4
            device += fetched * slot - state.store.nbytes - state.chosen.nbytes
        assert device == caches[name].bytes


def test_what_cannot_be_matched_is_refused() -> None:
    with pytest.raises(AllMemError, match="did you mean 'ladder'"):
        equal_caches(10**6, SMOLLM2, torch.float32, sinks=4, names=["laddder"])
    with pytest.raises(AllMemError, match="blocks: no cache has"):
        # Blocks of 100 tokens are too coarse for 750 slots.
        equal_caches(
            750 * 1536,
            SMOLLM2,
            torch.float32,
            sinks=4,
            names=["blocks"],
            options={"blocks": {"block": 100, "retrieved": 2}},
        )
    with pytest.raises(AllMemError, match="too few"):
        equal_caches(3 * 1536, SMOLLM2, torch.float32, sinks=4, names=["ladder"])
