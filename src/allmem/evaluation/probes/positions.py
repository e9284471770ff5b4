"""How well a model predicts a book, by how far it has read: loss by position.

One session reads one text, block by block, so that what is needed does not grow with its length
(but for what the model itself remembers). A row keeps sums by bins of positions.

Letters: T tokens of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import torch

from allmem.errors import AllMemError
from allmem.evaluation.model import EvaluatedModel, Session
from allmem.evaluation.probes.base import measuring_tokenizer
from allmem.evaluation.probes.books import stretches
from allmem.evaluation.probes.session_task import SessionTask
from allmem.evaluation.task import Example, Part, Row, Setting, Task

__all__ = ["TASKS", "Positions", "bin_edges", "sums_by_position"]

LENGTH, QUICK_LENGTH = 16_384, 4096
BLOCK = 1024
"""Tokens of one call."""
FIRST_EDGE = 64


class Positions(SessionTask):
    """``probes/positions``: nats per token, by position in a book."""

    name = "probes/positions"
    metric = "nll"
    scale = 1.0
    higher_is_better = False

    def examples(self, setting: Setting, model: EvaluatedModel) -> Iterator[Example]:
        measuring_tokenizer(model)
        length = max(setting.lengths, default=QUICK_LENGTH if setting.quick else LENGTH)
        for stretch in islice(stretches(setting, length), setting.limit):
            reference = {"book": stretch.book, "length": length}
            yield Example(f"{stretch.id}-{length}", stretch, reference)

    def measure(self, model: EvaluatedModel, example: Example, setting: Setting) -> Row:
        ids = example.ask.ids(measuring_tokenizer(model), example.reference["length"])
        if len(ids) < 2:
            raise AllMemError(
                f"{example.id} has {len(ids)} tokens of {example.reference['length']}, none of "
                f"them to predict; take it out of the books, or read further"
            )
        bins = sums_by_position(model.session(), ids)
        # A window's positions end where it does, however far the text goes.
        reach = None if model.sees else model.reach
        return {"bins": bins, "prompt_tokens": len(ids), "reach": reach}

    def parts(self, row: Row) -> list[Part]:
        reach = row["reach"]
        found = []
        for edge, total, count in row["bins"]:
            cell: dict[str, int] = {"position": edge}
            if reach is not None and edge > reach:
                cell["beyond_reach"] = 1
            found.append(Part({"nll": total / count}, cell, weight=count))
        return found


def bin_edges(length: int) -> list[int]:
    """Where bins end, up to the one that holds position ``length - 1``: two to every doubling."""
    edges = [FIRST_EDGE]
    while edges[-1] < length:
        last = edges[-1]
        # 64, 96, 128, 192, ...: a power of two, then half as much again.
        edges.append(last * 3 // 2 if last.bit_count() == 1 else last * 4 // 3)
    return edges


def sums_by_position(
    session: Session, ids: Sequence[int], block: int = BLOCK
) -> list[tuple[int, float, int]]:
    """Let a session read a text.

    Returns:
        Of every bin of positions that has any: where it ends, the sum of the losses of its tokens
        in nats, and how many they are. The first token of a text has no loss.
    """
    edges = torch.tensor(bin_edges(len(ids)))
    sums = torch.zeros(len(edges), dtype=torch.float64)
    counts = torch.zeros(len(edges), dtype=torch.int64)
    for first in range(0, len(ids), block):
        losses = session.losses(ids[first : first + block]).double()  # [T]
        positions = torch.arange(first, first + len(losses))
        if first == 0:
            losses, positions = losses[1:], positions[1:]
        bins = torch.bucketize(positions, edges, right=True)
        sums.index_add_(0, bins, losses)
        counts.index_add_(0, bins, torch.ones_like(bins))
    table = zip(edges.tolist(), sums.tolist(), counts.tolist(), strict=True)
    return [row for row in table if row[2]]


TASKS: dict[str, Callable[[], Task]] = {"probes/positions": Positions}
