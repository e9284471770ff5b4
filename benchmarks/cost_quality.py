"""What cheaper memories are worth on a real model: SmolLM2-135M, prose, equal tokens.

    python -m benchmarks.cost_quality --output runs/cost_quality

The settings are the candidates of ``benchmarks.cost`` in SmolLM2's proportions (D 576, 3 KV heads):
a memory in nine of thirty layers, distilled on one novel, judged on its end and on another novel by
the KL to full attention beyond the window. ``benchmarks.cost`` judges the same settings by recall,
on a two-layer model.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from allmem.choices import Conversion
from allmem.demo.settings import DemoSettings
from allmem.distill import DistillConfig
from allmem.distill.evaluate import compare
from allmem.distill.launch import run_recipe
from allmem.distill.recipe import DataSource, Recipe
from allmem.distill.rows import held_out_rows
from allmem.distill.run_files import RUN
from allmem.documents import LEARNED, READ, load_book
from allmem.models.adapter import ADAPTER
from allmem.opening import open_model
from allmem.prompts import plain_ids
from benchmarks.measure import record

NAME = "cost_quality"
WINDOW, SINKS, CHUNK, LENGTH = 128, 4, 128, 768
HELD_OUT = 60_000
"""Characters at the end of a book to judge by."""
SETTINGS: dict[str, dict[str, Any]] = {
    "full, h = 2d (plain)": {"width": 384},
    "full, h = d": {"width": 192},
    "lowrank(D/8), h = d": {"projections": "lowrank", "rank": 72, "width": 192},
    "lowrank(D/8), h = 2d, d = D/H/2": {
        "projections": "lowrank",
        "rank": 72,
        "head_dim": 96,
        "width": 192,
    },
}


def recipe_of(memory: dict[str, Any], text: Path, output: Path, tokens: int) -> Recipe:
    """A run that differs from the others in its memory alone."""
    demo = DemoSettings()
    return Recipe(
        model="smollm2",
        output=str(output),
        data=DataSource(texts=(str(text),), length=LENGTH),
        training=DistillConfig(tokens=tokens, kl_lr=demo.kl_lr),
        conversion=Conversion(
            window=WINDOW,
            sinks=SINKS,
            chunk=CHUNK,
            mixers=",".join(demo.mixers(30)),
            memory={"heads": 3, **memory},
        ),
        dtype="bfloat16",
        device="cpu",
    )


def measure(name: str, recipe: Recipe) -> dict[str, Any]:
    """Train, unless that was done, and judge."""
    folder = Path(recipe.output)
    if not (folder / ADAPTER).is_file():
        run_recipe(recipe, resume=(folder / RUN).is_file())
    opened = open_model(
        "smollm2", adapter=str(folder / ADAPTER), dtype=recipe.dtype, device=recipe.device
    )
    memories = [mixed for mixed in opened.model.mixers() if mixed.memory is not None]
    added = sum(p.numel() for p in opened.model.memory_parameters().values())
    state = sum(m.memory.state_bytes(LENGTH, opened.model.dtype) for m in memories if m.memory)
    row: dict[str, Any] = {
        "setting": name,
        "added (M)": round(added / 1e6, 2),
        "memory state (MB)": round(state / 1e6, 2),
    }
    for title, book in (("same novel", LEARNED), ("another", READ)):
        ids = torch.tensor(plain_ids(opened.tokenizer, load_book(book)[-HELD_OUT:]))
        found = compare(opened.model, held_out_rows(ids, LENGTH, 12), control=True)
        assert found.unwritten is not None
        row[f"{title}: window KL"] = round(found.window.kl, 4)
        row[f"{title}: memory KL"] = round(found.memory.kl, 4)
        row[f"{title}: never written"] = round(found.unwritten.kl, 4)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", default="runs/cost_quality")
    parser.add_argument("--tokens", type=int, default=48_000, help="of training, each")
    options = parser.parse_args()
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    text = output / "novel.txt"
    text.write_text(load_book(LEARNED)[:-HELD_OUT], encoding="utf-8")
    rows = []
    for number, (name, memory) in enumerate(SETTINGS.items(), 1):
        recipe = recipe_of(memory, text, output / f"{number}", options.tokens)
        rows.append(measure(name, recipe))
        print(rows[-1], flush=True)
    how = (
        "SmolLM2-135M-Instruct, 4-bit weights dequantised, bfloat16; memories in nine of thirty "
        f"layers, window and chunk {WINDOW}, {SINKS} sinks; {options.tokens:,} tokens of one "
        f"novel in rows of {LENGTH}, output projections solved, then KL; one seed."
    )
    what = (
        "KL to full attention beyond the window, nats per token, on 12 held-out rows each. Never "
        "written: the same memory, read only; what it gains is a fixed correction."
    )
    letters = (
        "D hidden size 576, H = 3 KV heads, d memory head size (D/H = 192 unless said), h width."
    )
    notes = [how, what, letters]
    record(NAME, "What cheaper memories are worth on prose", rows, notes)


if __name__ == "__main__":
    main()
