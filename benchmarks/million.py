"""How much memory a process takes while it reads a million tokens.

    python -m benchmarks.million [--layers 30]

Two of SmolLM2's thirty layers, with random weights, read random tokens. Resident is what the system
counts for the whole process, weights and libraries among it; its peak is forgotten before the first
token and noted on the way. Beside it stands what a cache of all keys and values would hold.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from allmem.cost.lengths import length_name, parse_lengths
from allmem.models.cache import AllMemCache
from allmem.models.modeling import READ_BLOCK
from benchmarks.measure import add_options, record
from benchmarks.occupied import forget_peak, peak, resident
from benchmarks.shapes import SHAPES, converted
from benchmarks.targets import Finding

MB = 1e6
WARM_UP = 4
"""Blocks of another text, for what a process sets up once."""


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--lengths", default="32k,64k,...,1M", help="where memory is noted")
    parser.add_argument("--dtype", default="bfloat16")
    add_options(parser, "million")
    options = parser.parse_args()
    shape = SHAPES["tiny" if options.quick else "smollm2"]
    lengths = parse_lengths("4k,8k,16k" if options.quick else options.lengths)
    model = converted(shape, getattr(torch, options.dtype), layers=options.layers)
    words = model.config.vocab_size
    generator = torch.Generator().manual_seed(0)

    def read(cache: AllMemCache) -> None:
        ids = torch.randint(10, words, (1, READ_BLOCK), generator=generator)
        model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)

    cache = AllMemCache(model.config)
    for _ in range(WARM_UP):
        read(cache)
    cache = AllMemCache(model.config)
    forget_peak("cpu")
    rows: list[dict[str, Any]] = []
    peaks, states, taken = {}, {}, 0.0
    attention = model.mixers()[0].attention.shape
    per_token = 4 * attention.kv_heads * attention.head_dim * options.layers
    for length in lengths:
        begin = time.perf_counter()
        while cache.columns < length:
            read(cache)
        taken += time.perf_counter() - begin
        peaks[length], states[length] = peak("cpu"), cache.nbytes
        rows.append(
            {
                "tokens": length_name(length),
                "resident now (MB)": round(resident() / MB, 1),
                "peak so far (MB)": round(peaks[length] / MB, 1),
                "state (MB)": round(states[length] / MB, 2),
                "all keys and values (MB)": round(per_token * length / MB, 1),
                "seconds so far": round(taken, 1),
            }
        )
        print(rows[-1], flush=True)
    first, last = lengths[0], lengths[-1]
    case = f"{length_name(last)} against {length_name(first)}, {options.layers} layers"
    remark = f"state {states[last] / states[first]:.3g}"
    findings = [Finding("million", case, peaks[last] / peaks[first], remark)]
    notes = [
        f"{options.layers} layers of {shape.title}, {options.dtype}, in blocks of {READ_BLOCK}.",
        f"Window {shape.window}, sinks {shape.sinks}, chunk {shape.chunk}.",
        "All keys and values: of these layers with full attention, in two bytes a number.",
    ]
    title = "Resident memory while a million tokens are read"
    record(options.name, title, rows, notes, findings, options)


if __name__ == "__main__":
    main()
