"""Recall by the number of pairs: made-up words tied to numbers, all over a text."""

from __future__ import annotations

from collections.abc import Callable

from allmem.data.builders.key_value import LINES, QUESTIONS
from allmem.evaluation.probes.base import Cell, Probe, Question, Script
from allmem.evaluation.probes.cast import Cast
from allmem.evaluation.probes.composing import Plant
from allmem.evaluation.task import Setting, Task

__all__ = ["TASKS", "KeyValue"]

PAIRS, QUICK_PAIRS = (8, 16, 32, 64, 128), (8, 32, 128)
"""What does not fit into a length is left out."""
ASKED = 2
"""Pairs of a document that are asked for."""


class KeyValue(Probe):
    """``probes/key_value``: the value of a key, by the number of pairs."""

    name = "probes/key_value"
    shared = ASKED

    def cells(self, setting: Setting) -> list[Cell]:
        return [{"pairs": n} for n in (QUICK_PAIRS if setting.quick else PAIRS)]

    def script(self, cast: Cast, cell: Cell, setting: Setting) -> Script:
        pairs = int(cell["pairs"])
        line, asks = LINES[cast.language].rstrip("\n"), QUESTIONS[cast.language]
        keys = [cast.word() for _ in range(pairs)]
        values = cast.values("number", pairs)
        lines = [line.format(key=k, value=v) for k, v in zip(keys, values, strict=True)]
        # The beginning is where the first pair stands, the end where the last one does.
        plants = [Plant(text, i / (pairs - 1)) for i, text in enumerate(lines)]
        questions = [
            Question(
                asks.format(key=keys[i]),
                (values[i],),
                (lines[i],),
                line.partition("{value}")[0].format(key=keys[i]).rstrip(),
                room=12,
            )
            for i in cast.rng.sample(range(pairs), ASKED)
        ]
        return Script(plants, questions)


TASKS: dict[str, Callable[[], Task]] = {"probes/key_value": KeyValue}
