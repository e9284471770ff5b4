"""How fast `allmem collect` collects with each engine.

    python -m benchmarks.collecting [--engines generate,embedded,vllm]

SmolLM2-135M-Instruct, as it is converted, answers questions that call for short answers and
questions that call for long ones. Timed is the collecting; what an engine takes to start stands
beside. vLLM draws its random numbers in its own way, so its answers differ, and tokens a second are
what compares.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from allmem.choices import Conversion
from allmem.distill.collect import collect
from allmem.distill.prompts import Prompts, read_prompts
from allmem.opening import PACKAGED, OpenedModel, open_model
from allmem.reading import recommended_sampling
from allmem.serving.responding import ENGINES, responding
from benchmarks.measure import add_options, record

THINGS = ("loom", "lighthouse", "compass", "bridge", "clock", "kite", "well", "violin")
ASKED = (
    "What is a {}? Answer in one sentence.",
    "Name three uses of a {}.",
    "Tell a story about a {}.",
    "Explain in detail how a {} works.",
)
SIZES: dict[str, Any] = {"window": 512, "sinks": 4, "chunk": 256}
LONGEST = 128
"""Tokens of an answer."""


def questions(opened: OpenedModel, folder: Path, things: Sequence[str]) -> Prompts:
    """As many kinds of question about every thing."""
    path = folder / "prompts.jsonl"
    rows = [json.dumps({"prompt": ask.format(thing)}) for thing in things for ask in ASKED]
    path.write_text("\n".join(rows) + "\n")
    return read_prompts([str(path)], opened.tokenizer)


def measure(engine: str, opened: OpenedModel, folder: Path, batch: int, quick: bool) -> Any:
    """A row: tokens a second with an engine."""
    prompts = questions(opened, folder, THINGS[:1] if quick else THINGS)
    how = recommended_sampling(opened.model, seed=0)
    longest = 8 if quick else LONGEST
    begun = time.perf_counter()
    answering = responding(engine, opened, prompts.end, how, max_new_tokens=longest, slots=batch)
    with answering as (respond, together), warnings.catch_warnings():
        # That an untrained memory adds nothing: here it is about time.
        warnings.simplefilter("ignore")
        ready = time.perf_counter()
        found = collect(
            opened,
            prompts,
            folder / f"{engine}_{batch}.jsonl",
            how,
            max_new_tokens=longest,
            batch=together,
            engine=respond,
        )
        seconds = time.perf_counter() - ready
    return {
        "engine": engine,
        "answered together": batch,
        "responses": found.done,
        "ended by themselves": f"{found.finished / found.done:.0%}",
        "tokens": found.tokens,
        "start (s)": ready - begun,
        "collecting (s)": seconds,
        "tokens/s": found.tokens / seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--engines", default=",".join(ENGINES[1:]))
    parser.add_argument("--batch", type=int, default=8, help="prompts answered together")
    add_options(parser, "collecting")
    options = parser.parse_args()
    opened = open_model(PACKAGED, Conversion(**SIZES), dtype="bfloat16")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for engine in options.engines.split(","):
            row = measure(engine, opened, Path(folder), options.batch, options.quick)
            first = rows[0] if rows else row
            rows.append({**row, "of the first": row["tokens/s"] / first["tokens/s"]})
            print(rows[-1], flush=True)
    sizes = ", ".join(f"{name} {size}" for name, size in SIZES.items())
    note = (
        f"bf16, {sizes}, answers of {LONGEST} tokens at most, drawn as the model's makers "
        "recommend. Tokens are those that were written."
    )
    record(options.name, "Collecting responses", rows, [note], options=options)


if __name__ == "__main__":
    # vLLM's processes import this file.
    main()
