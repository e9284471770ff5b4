"""A million tokens: nothing grows, nothing breaks, and positions stay exact."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from allmem.models.cache import AllMemCache
from tests.models.tiny import OWN_WINDOW, W, assert_close, logits, text, tiny_model

MILLION = 1_000_000

READ = """
import json, os, sys
import torch
torch.set_num_threads(1)
from pathlib import Path
from transformers import Qwen3Config, AutoModelForCausalLM
import allmem
from tests.models.tiny import randomise, randomise_memory

config = Qwen3Config(
    vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=1, head_dim=8, max_position_embeddings=512,
)
base = AutoModelForCausalLM.from_config(config).eval()
randomise(base, std=0.2)
model = allmem.convert(base, window=128, sinks=4, chunk=128)
randomise_memory(model, std=0.1)
generator = torch.Generator().manual_seed(0)
cache = allmem.AllMemCache(model.config)
# /proc/self/statm counts pages; the second number is what is resident.
page = os.sysconf("SC_PAGE_SIZE")
seen, sizes, resident, finite = 0, set(), [], True
while seen < 1_000_000:
    ids = torch.randint(0, 32, (1, 8192), generator=generator)
    with torch.no_grad():
        logits = model(ids, past_key_values=cache, logits_to_keep=64).logits
    finite = finite and bool(torch.isfinite(logits).all())
    seen += ids.shape[1]
    sizes.add(cache.nbytes)
    resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * page)
finite = finite and all(bool(t.isfinite().all()) for t in cache.tensors().values())
moved = (cache.tensors()["layers.0.memory.memory.weights.down"][0]
         - model.mixers()[0].memory.unit.initial["down"]).abs().max()
print(json.dumps({
    "seen": seen, "sizes": sorted(sizes), "resident": resident, "finite": finite,
    "moved": float(moved), "expected": model.mixers()[0].state_bytes(seen, torch.float32),
}))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_a_million_tokens_take_no_more_memory_than_fifty_thousand() -> None:
    done = subprocess.run([sys.executable, "-c", READ], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["seen"] >= MILLION
    assert found["finite"]
    assert found["sizes"] == [found["expected"]]
    assert found["moved"] > 1e-2, "the memory must have learned something"
    resident = found["resident"][len(found["resident"]) // 20 :]
    assert max(resident) <= 1.02 * min(resident)


@pytest.mark.parametrize("sinks", [0, 3])
@pytest.mark.parametrize("name", ["qwen3", "phi3", "gemma3"])
def test_positions_at_a_million_are_as_exact_as_at_the_start(name: str, sinks: int) -> None:
    """The same text, read by a model without memory far out and near the beginning.

    In fp32 the angle of the fastest feature would be off by 0.03 rad.
    """
    model = tiny_model(name, mixers="window", sinks=sinks)
    near = AllMemCache(model.config)
    logits(model, text(1, sinks + 2 * W), past_key_values=near)
    far = near.fork()
    # A whole number of turns of the ring, so that every slot is where it would be.
    turns = W * (OWN_WINDOW.get(name, [1])[0] or 1)
    far.seen += MILLION // turns * turns
    ids = text(1, 4 * W, seed=1)
    found, expected = (logits(model, ids, past_key_values=cache) for cache in (far, near))
    # The window of either layer has by now left the keys that were read before the leap.
    assert_close(found[:, 2 * W :], expected[:, 2 * W :], 1e-4)
