"""Where the question stands: before the document, behind it, or both; the same items each time.

A model that knows the question while it reads may keep the answer alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from allmem.evaluation.probes.base import Cell, Probe, Question, Script
from allmem.evaluation.probes.cast import Cast
from allmem.evaluation.probes.composing import Plant
from allmem.evaluation.task import Setting, Task

__all__ = ["TASKS", "QuestionPlace"]

FACTS = 4
"""Of a document; one of them is asked for."""


class QuestionPlace(Probe):
    """``probes/question_place``: recall by the place of the question."""

    name = "probes/question_place"

    def script(self, cast: Cast, cell: Cell, setting: Setting) -> Script:
        facts = [cast.fact(kinds=("number",)) for _ in range(FACTS)]
        plants = [Plant(fact.stated[0], cast.rng.random()) for fact in facts]
        fact = facts[0]
        question = Question(
            fact.subject.asks.format(name=fact.name),
            fact.values,
            tuple(fact.stated),
            fact.prefix,
            room=12,
        )
        places = [
            replace(question, place=place, cell={"question": place})
            for place in ("before", "after", "both")
        ]
        return Script(plants, places)


TASKS: dict[str, Callable[[], Task]] = {"probes/question_place": QuestionPlace}
