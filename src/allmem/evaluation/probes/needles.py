"""Needles in a haystack: how a fact is found by its depth, the length of the text, and how many
sentences hold it.

One document hides a fact at every depth, each about somebody else, and is asked for all of them.
"""

from __future__ import annotations

from collections.abc import Callable

from allmem.evaluation.probes.base import Cell, Probe, Question, Script
from allmem.evaluation.probes.cast import Cast, Fact
from allmem.evaluation.probes.composing import Plant
from allmem.evaluation.task import Setting, Task

__all__ = ["TASKS", "Needles", "Passkey"]

DEPTHS, QUICK_DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0), (0.0, 0.5, 1.0)
SEVERAL = {"en": "In the order of the text:", "zh": "按文中的顺序："}
ROOMS = {"number": 12, "city": 16, "thing": 24}
"""Tokens for a value, by its kind; a Chinese character may take three."""


class Passkey(Probe):
    """``probes/passkey``: a number, by depth."""

    name = "probes/passkey"
    languages = ("en", "zh")
    quick_languages: tuple[str, ...] = ("en", "zh")
    counts: tuple[int, ...] = (1,)
    """Of the sentences that a question asks for."""
    kinds: tuple[str, ...] = ("number",)

    def script(self, cast: Cast, cell: Cell, setting: Setting) -> Script:
        depths = QUICK_DEPTHS if setting.quick else DEPTHS
        step = depths[1] - depths[0]
        plants, questions = [], []
        for depth in depths:
            for needles in self.counts:
                fact = cast.fact(needles, self.kinds)
                for j, sentence in enumerate(fact.stated):
                    # Several stand between this depth and the next one.
                    plants.append(Plant(sentence, min(1.0, depth + step * j / needles)))
                questions.append(_question(fact, {"needles": needles, "depth": depth}, cast))
        return Script(plants, questions)


class Needles(Passkey):
    """``probes/needles``: one to three values of one thing, by depth."""

    name = "probes/needles"
    counts = (1, 2, 3)
    kinds = ("number", "city", "thing")
    quick_languages = ("en",)


def _question(fact: Fact, cell: Cell, cast: Cast) -> Question:
    one = len(fact.values) == 1
    asks = fact.subject.asks if one else fact.subject.asks_all
    return Question(
        asks.format(name=fact.name),
        fact.values,
        tuple(fact.stated),
        fact.prefix if one else SEVERAL[cast.language],
        cell,
        room=ROOMS[fact.subject.values] * len(fact.values),
    )


TASKS: dict[str, Callable[[], Task]] = {"probes/passkey": Passkey, "probes/needles": Needles}
