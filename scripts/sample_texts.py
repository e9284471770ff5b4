"""Draws texts from a model itself: what it says when nobody asks.

    python -m scripts.sample_texts src/allmem/resources/smollm2_samples.txt.xz

A memory must not disturb what a model says within its window. The rows that teach it so should be
of every kind of text that the model knows, and none but the model's own words are of every kind and
free of anybody's licence: they are as free as its weights. Drawn from the start token, at
temperature 1 from the likeliest tokens of 95 % together. Ten minutes on a core.
"""

from __future__ import annotations

import argparse
import lzma
from pathlib import Path

import torch

from allmem.files import atomic_path
from allmem.models.sources import load_base, load_tokenizer, smollm2_file

SEED = 0
TOGETHER = 80
"""Rows that are drawn at a time."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--tokens", type=int, default=224, help="of a row")
    options = parser.parse_args()
    source = smollm2_file()
    model, tokenizer = load_base(source, dtype=torch.bfloat16).eval(), load_tokenizer(source)
    torch.manual_seed(SEED)
    texts: list[str] = []
    start = torch.full((TOGETHER, 1), tokenizer.convert_tokens_to_ids("<|endoftext|>"))
    while len(texts) < options.rows:
        drawn = model.generate(
            start,
            attention_mask=torch.ones_like(start),
            max_new_tokens=options.tokens,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=0.95,
        )
        texts += [tokenizer.decode(row, skip_special_tokens=True).strip() for row in drawn]
        print(f"{len(texts)} of {options.rows}", flush=True)
    packed = lzma.compress("\n\n".join(texts[: options.rows]).encode())
    with atomic_path(options.file) as part:
        part.write_bytes(packed)


if __name__ == "__main__":
    main()
