"""What a memory recalls, by how many windows back it stands: facts that pages of a novel hide,
lists of numbers, and prose that is said again.

    python -m benchmarks.shipped_memory [--adapter smollm2] [--window 512 --name shipped_memory_512]

Four readers of the same rows, from the same weights: full attention (the teacher), the window
alone, the window with its memory, and the same memory read but never written. All are given the
right tokens so far and asked for the next one, and what counts is older than the window: the values
that were asked for, digits, the words of the second copy. Names of the questions occur in no
training. Prose is of another novel than that of the training, and all of it counts.

Rows of a cell are resampled for its 95 % interval.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch

from allmem.config import WindowConfig
from allmem.data.fact_lists import FactLists, FactWriter
from allmem.data.interviews import Interviewer, Interviews
from allmem.data.recitations import Recitations, Reciter
from allmem.distill.evaluate import Comparison, compare
from allmem.distill.rows import Row, held_out_rows
from allmem.documents import READ, load_book
from allmem.files import atomic_path
from allmem.models.adapter import find_adapter
from allmem.opening import OpenedModel, open_model
from allmem.prompts import plain_ids
from benchmarks.measure import RESULTS, add_options, record

NAME = "shipped_memory"
READERS = ("teacher", "window", "memory", "unwritten")
WINDOWS = (1, 2, 4, 8, 16, 32, 64)
"""Of prose between what is told and what is asked."""
REACH = 7800
"""Tokens that SmolLM2 was trained to read, less an answer."""
SENTENCE = "The pass key of {name} is {number}.\n"
RESAMPLES = 1000

Made = Callable[[OpenedModel, int, int, int], list[Row]]
"""From a model, its window, the tokens between telling and asking, and how many: rows."""


def hidden_facts(opened: OpenedModel, window: int, gap: int, count: int) -> list[Row]:
    """Four facts, each behind a little prose, asked for in a chat."""
    chosen = Interviews((4,), (24,), (gap,), values_only=True)
    writer = Interviewer(chosen, opened.tokenizer, window, seed=1, held_out=True)
    return [writer.row(i) for i in range(count)]


def lists(opened: OpenedModel, window: int, gap: int, count: int) -> list[Row]:
    """Twelve people's numbers, asked for in another order."""
    chosen = FactLists(counts=(12,), forms=(SENTENCE,), gaps=(gap,))
    writer = FactWriter(chosen, opened.tokenizer, window, seed=1, held_out=True)
    return [writer.row(i) for i in range(count)]


def recitations(opened: OpenedModel, window: int, gap: int, count: int) -> list[Row]:
    """160 tokens of prose, said twice."""
    chosen = Recitations((160,), (gap,))
    writer = Reciter(chosen, opened.tokenizer, window, seed=1, held_out=True)
    return [writer.row(i) for i in range(count)]


TESTS: dict[str, Made] = {
    "hidden facts": hidden_facts,
    "lists of numbers": lists,
    "prose said again": recitations,
}


def right(found: list[Comparison], reader: str) -> tuple[float, float]:
    """The share of tokens that a reader has right, in per cent, and half of its 95 % interval."""
    sizes = torch.tensor([one.positions for one in found], dtype=torch.float64)
    hits = torch.tensor([getattr(one, reader).accuracy for one in found]).double() * sizes
    draws = torch.randint(
        len(found), (RESAMPLES, len(found)), generator=torch.Generator().manual_seed(0)
    )
    means = hits[draws].sum(1) / sizes[draws].sum(1)
    low, high = means.quantile(torch.tensor([0.025, 0.975]).double()).tolist()
    return 100 * float(hits.sum() / sizes.sum()), 50 * (high - low)


def mean_kl(found: list[Comparison], reader: str) -> float:
    """From full attention, in nats, over all positions."""
    positions = sum(one.positions for one in found)
    return sum(getattr(one, reader).kl * one.positions for one in found) / positions


def measured(test: str, back: str, found: list[Comparison]) -> dict[str, Any]:
    """A line of the table."""
    row: dict[str, Any] = {"test": test, "windows between": back}
    row["positions"] = sum(one.positions for one in found)
    for reader in READERS:
        mean, half = right(found, reader)
        row[f"{reader}: right (%)"] = f"{mean:.1f} ± {half:.1f}"
    for reader in READERS[1:]:
        row[f"{reader}: KL"] = round(mean_kl(found, reader), 3)
    return row


def plot(path: Any, lines: dict[str, dict[int, list[Comparison]]], window: int) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    for axes, (test, cells) in zip(figure.subplots(1, len(lines)), lines.items(), strict=True):
        for reader in READERS:
            scores = [right(found, reader) for found in cells.values()]
            means, halves = [mean for mean, _ in scores], [half for _, half in scores]
            axes.errorbar(list(cells), means, halves, label=reader, capsize=2)
        axes.set_xscale("log", base=2)
        axes.set(title=test, xlabel=f"windows of {window} tokens between", ylim=(0, 100))
    figure.axes[0].set_ylabel("tokens right (%)")
    figure.axes[0].legend(fontsize=8)
    with atomic_path(path) as part:
        figure.savefig(part, format="png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--adapter", default="smollm2", help="file, folder or name")
    parser.add_argument("--window", type=int, help="in place of the adapter's")
    parser.add_argument("--rows", type=int, default=12, help="of each cell")
    parser.add_argument("--dtype", default="bfloat16")
    add_options(parser, NAME)
    options = parser.parse_args()
    opened = open_model(
        options.model, adapter=str(find_adapter(options.adapter)), dtype=options.dtype, device="cpu"
    )
    config = opened.model.config
    window = WindowConfig(options.window or config.window, config.sinks)
    rows: list[dict[str, Any]] = []
    lines: dict[str, dict[int, list[Comparison]]] = {}
    count = 2 if options.quick else options.rows
    for test, make in TESTS.items():
        lines[test] = {}
        for back in WINDOWS[:2] if options.quick else WINDOWS:
            made = make(opened, window.window, back * window.window, count)
            if max(len(row["input_ids"]) for row in made) > REACH:
                continue
            found = [compare(opened.model, [row], control=True, window=window) for row in made]
            lines[test][back] = found
            rows.append(measured(test, str(back), found))
            print(rows[-1], flush=True)
    ids = torch.tensor(plain_ids(opened.tokenizer, load_book(READ)))
    length = 16 * window.window
    prose = held_out_rows(ids, min(length, REACH), 2 if options.quick else 8)
    found = [compare(opened.model, [row], control=True, window=window) for row in prose]
    rows.append(measured("prose of another novel", "", found))
    sizes = f"window {window.window}, {window.sinks} sinks, chunk {config.chunk}"
    if not options.quick:
        plot(RESULTS / f"{options.name}.png", lines, window.window)
    meaning = (
        "Right: the likeliest next token is the right one, those before given. KL: from full "
        "attention, in nats. Only positions beyond the window count."
    )
    notes = [
        f"{options.model} with the adapter {options.adapter}, {options.dtype}; {sizes}.",
        meaning,
        f"{count} rows a cell; intervals (95 %) resample rows.",
        f"![right by distance]({options.name}.png)",
    ]
    record(options.name, "What the memory that ships recalls", rows, notes, options=options)


if __name__ == "__main__":
    main()
