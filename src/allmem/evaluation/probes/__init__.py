"""Probes: tasks that need no data set, made for any tokenizer and length.

Most hide facts in a text and ask for them; every such fact is older than what the model's attention
sees, or marked. Others (positions, turns, audit) let the model read and measure every token.
"""

from __future__ import annotations

from collections.abc import Callable

from allmem.evaluation.probes import (
    audit,
    competencies,
    fact_lists,
    forgetting,
    key_value,
    needles,
    order,
    positions,
    question_place,
    turns,
    updates,
)
from allmem.evaluation.task import Task

__all__ = ["GROUPS", "TASKS"]

_ASKED: dict[str, Callable[[], Task]] = {
    **needles.TASKS,
    **key_value.TASKS,
    **updates.TASKS,
    **forgetting.TASKS,
    **order.TASKS,
    **question_place.TASKS,
    **competencies.TASKS,
}
_MEASURED: dict[str, Callable[[], Task]] = {
    **fact_lists.TASKS,
    **positions.TASKS,
    **turns.TASKS,
    **audit.TASKS,
}
TASKS: dict[str, Callable[[], Task]] = {**_ASKED, **_MEASURED}
GROUPS: dict[str, tuple[str, ...]] = {
    "probes": tuple(TASKS),
    "probes-text": tuple(_ASKED),
    "probes-measured": tuple(_MEASURED),
    "probes-competencies": tuple(competencies.TASKS),
}
