"""Order: which of two things was told first.

Half of the questions name the right answer first and half name it last, whatever the document, so
that a preference for either gives 50 %.
"""

from __future__ import annotations

from collections.abc import Callable

from allmem.evaluation.probes.base import Cell, Probe, Question, Script
from allmem.evaluation.probes.cast import Cast
from allmem.evaluation.probes.composing import Plant
from allmem.evaluation.task import Setting, Task

__all__ = ["TASKS", "Order"]

EVENTS = (
    ("{name} came through the north gate.", "came through the north gate"),
    ("{name} rang the bell of the tower.", "rang the bell of the tower"),
    ("{name} crossed the old bridge.", "crossed the old bridge"),
    ("{name} lit the lamp at the harbour.", "lit the lamp at the harbour"),
)
GAPS = (0.1, 0.5)
"""Of the text between the two."""


class Order(Probe):
    """``probes/order``: which of two came first, by the distance between them."""

    name = "probes/order"
    metric = "choice"
    shared = 2

    def script(self, cast: Cast, cell: Cell, setting: Setting) -> Script:
        plants, questions = [], []
        # Each gap twice: once with the right answer named first, once last.
        kinds = [(gap, named_first) for gap in GAPS for named_first in (True, False)]
        for (states, what), (gap, named_first) in zip(EVENTS, kinds, strict=True):
            begin = cast.rng.uniform(0, 1 - gap)
            one, two = cast.name(), cast.name()
            told = [states.format(name=name) for name in (one, two)]
            plants += [Plant(told[0], begin), Plant(told[1], begin + gap)]
            named = (one, two) if named_first else (two, one)
            questions.append(
                Question(
                    f"Of {named[0]} and {named[1]}, who {what} first in the text?",
                    (one,),
                    tuple(told),
                    "The first was",
                    {"gap": gap},
                    rivals=(two,),
                )
            )
        return Script(plants, questions)


TASKS: dict[str, Callable[[], Task]] = {"probes/order": Order}
