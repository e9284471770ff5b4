"""What token modes, a memory without training, are worth on prose beside a tiny window.

    python -m benchmarks.token_modes
    python -m benchmarks.token_modes --book chesterton --thresholds 1 0.95 --name token_modes_check

SmolLM2-135M-Instruct reads the beginning of a shipped novel, on which nothing was trained: with a
window of 128 tokens, with ``camelot`` beside it, and with the window that has the bytes of both.
Perplexity is that of the tokens from which the small window does not reach back to the beginning.
The default threshold was chosen on the first novel; the second one checks the choice.
"""

from __future__ import annotations

import argparse
import copy
import time
from typing import Any

import torch

import allmem
from allmem.documents import LEARNED, READ, load_book
from allmem.models.sources import load_base, load_tokenizer, smollm2_file
from benchmarks.measure import record
from benchmarks.prose import losses

BOOKS = {"morris": READ, "chesterton": LEARNED}
VARIANTS: list[dict[str, Any]] = [
    {"threshold": 1},
    {"threshold": 0.97},
    {"threshold": 0.95},
    {"threshold": 0.9},
    {"threshold": 0.8},
    {"threshold": 0.95, "weigh": "token"},
    {"threshold": 0.9, "weigh": "token"},
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--window", type=int, default=128)
    parser.add_argument("--sinks", type=int, default=4)
    parser.add_argument("--slots", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--book", choices=BOOKS, default="morris")
    parser.add_argument("--thresholds", type=float, nargs="+", help="these alone, as in the paper")
    parser.add_argument("--name", default="token_modes")
    options = parser.parse_args()
    variants = VARIANTS
    if options.thresholds:
        variants = [{"threshold": value} for value in options.thresholds]
    source = smollm2_file()
    base = load_base(source)
    text = load_book(BOOKS[options.book])[: 8 * options.tokens]
    ids = load_tokenizer(source)(text, return_tensors="pt").input_ids[:, : options.tokens]

    def read(mixers: str, window: int, chosen: dict[str, Any]) -> dict[str, Any]:
        model = allmem.convert(
            copy.deepcopy(base),
            window=window,
            sinks=options.sinks,
            mixers=mixers,
            mixer_options={mixers: chosen} if chosen else None,
            check=False,
        )
        begin = time.perf_counter()
        beyond = losses(model, ids)[options.window + options.sinks :]
        said = ", ".join(f"{name} {value}" for name, value in chosen.items())
        size = model.mixers()[0].state_bytes(options.tokens, torch.float32)
        row = {
            "reads with": mixers if mixers == "full" else f"{mixers}, W = {window}",
            "options": said or "-",
            "KiB a layer": round(size / 1024),
            "perplexity": f"{float(beyond.mean().exp()):.2f}",
            "seconds": round(time.perf_counter() - begin),
        }
        print(row, flush=True)
        return row

    rows = [read("full", options.window, {}), read("window", options.window, {})]
    head = base.config.hidden_size // base.config.num_attention_heads
    for slots in options.slots:
        # A mode is a key and a value in fp32 and two numbers of four bytes.
        more = round(slots * (2 * head + 2) / (2 * head))
        rows.append(read("window", options.window + more, {}))
        rows += [read("camelot", options.window, {"slots": slots, **v}) for v in variants]
    record(
        options.name,
        "Perplexity of prose with token modes and no training",
        rows,
        [
            f"The first {ids.shape[1]} tokens of {options.book}, {options.sinks} sinks, fp32.",
            "In half precision a window's bytes halve; those of modes, running means, do not.",
            "One text and no intervals: differences below one percent say little.",
        ],
    )


if __name__ == "__main__":
    main()
