"""Reading and generating against full attention, by length.

    python -m benchmarks.reading --lengths 1024,2048,4096,8192,16384,32768

For each length: seconds to read a text of that length into an empty state, seconds per generated
token after it, and bytes of state, for the base model (SDPA, DynamicCache), the window with sinks
alone, and AllMem. All three read in the same blocks, from the same weights (the memory's own
weights do not change the cost). The text is random tokens.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

import allmem
from allmem.config import MemoryConfig
from allmem.models.cache import AllMemCache
from allmem.models.sources import load_base, smollm2_file
from benchmarks.measure import Timing, record, timed

BLOCK = 2048


@torch.no_grad()
def read(model: PreTrainedModel, ids: torch.Tensor, cache: Any) -> Any:
    """Fill ``cache`` with ``ids`` [1, T], block by block."""
    for block in ids.split(BLOCK, dim=1):
        model(input_ids=block, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


@torch.no_grad()
def generate_tokens(model: PreTrainedModel, cache: Any, count: int) -> None:
    """``count`` decoding steps."""
    token = torch.full((1, 1), 100)
    for _ in range(count):
        model(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1)


def state_bytes(cache: Any) -> int:
    """Bytes that a sequence left behind."""
    if isinstance(cache, AllMemCache):
        return cache.nbytes
    return sum(t.nbytes for layer in cache.layers for t in (layer.keys, layer.values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=None, help="hub name or folder; default: SmolLM2")
    parser.add_argument("--lengths", default="1024,2048,4096,8192,16384,32768")
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--sinks", type=int, default=16)
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--projections", default="full")
    parser.add_argument("--runs", type=int, default=3, help="runs of each up to 8k tokens; then 1")
    parser.add_argument("--decode", type=int, default=24, help="tokens to generate")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--name", default="reading")
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    lengths = [int(x) for x in options.lengths.split(",")]
    source = options.model or smollm2_file()
    sizes = {"window": options.window, "sinks": options.sinks}

    def plain() -> tuple[PreTrainedModel, Callable[[], Any]]:
        return load_base(source, dtype=dtype), DynamicCache

    def converted(mixers: str) -> tuple[PreTrainedModel, Callable[[], Any]]:
        memory = MemoryConfig(chunk=options.chunk, projections=options.projections)
        model = allmem.convert(
            load_base(source, dtype=dtype),
            mixers=mixers,
            memory=memory if mixers == "allmem" else None,
            **sizes,
        )
        return model, lambda: AllMemCache(model.config)

    builders = {
        "full attention": plain,
        "window + sinks": lambda: converted("window"),
        "AllMem": lambda: converted("allmem"),
    }
    rows: dict[int, dict[str, Any]] = {length: {"tokens": length} for length in lengths}
    generator = torch.Generator().manual_seed(0)
    for name, build in builders.items():
        model, new_cache = build()
        for length in lengths:
            ids = torch.randint(10, model.config.vocab_size, (1, length), generator=generator)
            runs = options.runs if length <= 8192 else 1
            caches: list[Any] = []

            def once(m: Any = model, i: Any = ids, new: Any = new_cache, c: Any = caches) -> None:
                c[:] = [read(m, i, new())]

            reading = timed(once, runs, warm_up=int(runs > 1))
            cache = caches.pop()
            one = timed(lambda m=model, c=cache: generate_tokens(m, c, options.decode), 3)
            per_token = Timing(
                *(x / options.decode for x in (one.median, one.fastest, one.slowest)), 3
            )
            rows[length][f"{name}: read (s)"] = reading
            rows[length][f"{name}: per generated token (s)"] = per_token
            rows[length][f"{name}: state (MB)"] = state_bytes(cache) / 1e6
            print(
                name,
                length,
                f"{reading.median:.2f} s",
                f"{per_token.median * 1e3:.1f} ms",
                flush=True,
            )
        del model, cache
        gc.collect()
    record(
        options.name,
        "Reading and generating, by length",
        list(rows.values()),
        [
            f"{options.model or 'SmolLM2-135M-Instruct'}, {options.dtype}, batch 1.",
            f"Window {options.window}, sinks {options.sinks}, chunk {options.chunk}, projections "
            + options.projections,
            "Median (fastest–slowest). Above 8k tokens one run without warm-up.",
        ],
    )


if __name__ == "__main__":
    main()
