"""Facts that the window has lost: how many of them a distilled memory recalls.

    python -m benchmarks.recall_facts --output runs/recall_facts [KEY=VALUE ...]

Runs the preset smollm2-cpu (or goes on with it), then asks four readers: the teacher with full
attention, the window alone, the window with its memory, and the same memory read but never written,
which tells what was remembered from what was learned. Names of the questions never occur in
training, numbers are random everywhere. Besides lists like those of the training it asks at
distances and in forms that were not trained, and reads prose, to see what the memories cost there.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from allmem.data.fact_lists import FactLists, FactWriter
from allmem.distill.checkpoint import STATE, last_checkpoint
from allmem.distill.evaluate import Comparison, compare
from allmem.distill.launch import run_recipe
from allmem.distill.progress import Step
from allmem.distill.recipe import Recipe, load_recipe
from allmem.distill.rows import Row, held_out_rows
from allmem.distill.run_files import RUN
from allmem.documents import LEARNED, READ, load_book
from allmem.files import atomic_path
from allmem.models.adapter import ADAPTER
from allmem.opening import open_model
from allmem.prompts import plain_ids
from benchmarks.measure import RESULTS, record

NAME = "recall_facts"
LIST, SENTENCE = "{name}: {number}\n", "The pass key of {name} is {number}.\n"
ASKED = {
    "16 facts in a list": FactLists(),
    "the same, 128 tokens of prose before the questions": FactLists(gaps=(128,)),
    "the same, 512 tokens of prose (never trained)": FactLists(gaps=(512,)),
    "the same, 2048 tokens of prose (never trained)": FactLists(gaps=(2048,)),
    "12 sentences": FactLists(counts=(12,), forms=(SENTENCE,)),
    "8 sentences, 30 tokens of prose between any two (never trained)": FactLists(
        counts=(8,), forms=(SENTENCE,), scattered=(30,)
    ),
    "8 lines of another form (never trained)": FactLists(
        counts=(8,), forms=("{name} lives at number {number} in the long street.\n",)
    ),
}
READERS = ("teacher", "window", "memory", "unwritten")


def evaluate(recipe: Recipe, rows: int) -> dict[str, Comparison]:
    """Every test by the trained memories."""
    adapter = str(Path(recipe.output) / ADAPTER)
    opened = open_model(recipe.model, adapter=adapter, dtype=recipe.dtype, device=recipe.device)
    window = opened.model.config.window
    tests: dict[str, list[Row]] = {}
    for name, facts in ASKED.items():
        writer = FactWriter(facts, opened.tokenizer, window, seed=1, held_out=True)
        tests[name] = [writer.row(i) for i in range(rows)]
    for title, book in (("prose, the novel of the training", LEARNED), ("prose, another", READ)):
        ids = torch.tensor(plain_ids(opened.tokenizer, load_book(book)[-40_000:]))
        tests[title] = held_out_rows(ids, 768, 8)
    found = {}
    for name, listed in tests.items():
        found[name] = compare(opened.model, listed, control=True)
        print(name, found[name], flush=True)
    return found


def curve(folder: Path) -> list[tuple[int, float]]:
    """(tokens, KL) of every step end to end, averaged over ten."""
    stages = json.loads((folder / RUN).read_text())["stages"]
    number = next(i for i, stage in enumerate(stages, 1) if stage["stage"] == "kl")
    checkpoint = last_checkpoint(folder / f"{number}-kl")
    assert checkpoint is not None
    steps = [
        (int(entry["tokens"]), entry["divergence"])
        for entry in json.loads((checkpoint / STATE).read_text())["log_history"]
        if "divergence" in entry
    ]
    groups = [steps[i : i + 10] for i in range(0, len(steps), 10)]
    return [(group[-1][0], sum(kl for _, kl in group) / len(group)) for group in groups]


def plot(path: Path, line: list[tuple[int, float]], found: dict[str, Comparison]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([tokens for tokens, _ in line], [kl for _, kl in line])
    left.set(xlabel="training tokens", ylabel="KL (nats)", title="Training, facts and prose")
    left.set_ylim(bottom=0)
    asked = [name for name in found if not name.startswith("prose")]
    for i, reader in enumerate(READERS):
        scores = [getattr(found[name], reader).accuracy for name in asked]
        places = [j + 0.2 * i for j in range(len(asked))]
        right.barh(places, scores, height=0.18, label=reader)
    right.set_yticks([j + 0.3 for j in range(len(asked))], [n[:44] for n in asked], fontsize=7)
    right.invert_yaxis()
    right.set(xlabel="digits right", xlim=(0, 1), title="Facts older than the window")
    right.legend(fontsize=7)
    with atomic_path(path) as part:
        figure.savefig(part, format="png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", default="runs/recall_facts")
    parser.add_argument("--rows", type=int, default=16, help="of each test")
    parser.add_argument("settings", nargs="*", help="key=value, in place of the preset's")
    options = parser.parse_args()
    recipe = load_recipe("smollm2-cpu", [f"output={options.output}", *options.settings])
    folder = Path(recipe.output)
    begin = time.perf_counter()
    last: list[Step] = []

    def show(step: Step) -> None:
        last[:] = [step]
        if step.number % 10 == 0:
            print(
                f"{step.stage} {step.number}: {step.tokens} tokens, {step.loss:.3f}, "
                f"{time.perf_counter() - begin:.0f} s",
                flush=True,
            )

    if not (folder / ADAPTER).is_file():
        run_recipe(recipe, resume=(folder / RUN).is_file(), on_step=show)
    minutes = (time.perf_counter() - begin) / 60
    found = evaluate(recipe, options.rows)
    rows: list[dict[str, Any]] = []
    for name, test in found.items():
        row: dict[str, Any] = {"test": name, "positions": test.positions}
        for reader in READERS:
            score = getattr(test, reader)
            row[f"{reader}: KL"] = round(score.kl, 4)
            row[f"{reader}: right"] = round(score.accuracy, 3)
        row["share of the window's KL left"] = round(test.memory.kl / max(test.window.kl, 1e-9), 3)
        rows.append(row)
    line = curve(folder)
    took = f" in {minutes:.0f} minutes, loading and two comparisons included" if last else ""
    trained = f"Training: {line[-1][0]:,} tokens{took}."
    plot(RESULTS / f"{NAME}.png", line, found)
    model = (
        "SmolLM2-135M-Instruct, 4-bit weights dequantised, bfloat16; window and chunk 48, 4 sinks, "
        "memories in layers 8, 17, 18 and 20, two heads of 64 each, width 512."
    )
    counted = (
        "Positions beyond the window only: the digits of facts older than the window, and for "
        "prose every token. Right: the likeliest token is the right one."
    )
    choice = "One run, one seed. Layers were chosen on lists of this kind."
    notes = [model, trained, counted, choice, f"![training and answers]({NAME}.png)"]
    record(NAME, "Facts that the window has lost", rows, notes)


if __name__ == "__main__":
    main()
