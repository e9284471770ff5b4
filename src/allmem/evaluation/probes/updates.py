"""Facts that change: the last value counts, and an answer with a former one is counted apart."""

from __future__ import annotations

from collections.abc import Callable

from allmem.evaluation.probes.base import Cell, Probe, Question, Script
from allmem.evaluation.probes.cast import Cast, Fact
from allmem.evaluation.probes.composing import Plant
from allmem.evaluation.task import Setting, Task

__all__ = ["TASKS", "Updates", "ask_latest", "scattered"]

VALUES, QUICK_VALUES = (1, 2, 4, 8), (1, 4)
"""Of one thing, one after another; of as many people in each document."""
PREFIX = {"en": "Answer:", "zh": "答案："}
"""Not how a sentence begins that states a value, since the first one begins otherwise."""


class Updates(Probe):
    """``probes/updates``: the latest of several values."""

    name = "probes/updates"
    languages = ("en", "zh")

    def script(self, cast: Cast, cell: Cell, setting: Setting) -> Script:
        plants, questions = [], []
        for values in QUICK_VALUES if setting.quick else VALUES:
            fact = cast.fact(values)
            plants += scattered(cast, fact.changed)
            questions.append(ask_latest(cast, fact, {"values": values}))
        return Script(plants, questions)


def scattered(cast: Cast, sentences: list[str]) -> list[Plant]:
    """Sentences anywhere in the text, in their order."""
    depths = sorted(cast.rng.random() for _ in sentences)
    return [Plant(text, depth) for text, depth in zip(sentences, depths, strict=True)]


def ask_latest(cast: Cast, fact: Fact, cell: Cell) -> Question:
    """The question for a fact's last value."""
    return Question(
        fact.subject.asks_latest.format(name=fact.name),
        fact.values[-1:],
        # The former values can be forgotten.
        tuple(fact.changed[-1:]),
        PREFIX[cast.language],
        cell,
        stale=fact.values[:-1],
    )


TASKS: dict[str, Callable[[], Task]] = {"probes/updates": Updates}
