"""RULER's two scores: is what was asked for somewhere in the answer, whatever its case
(NVIDIA/RULER, ``scripts/eval/synthetic/constants.py`` and ``scripts/eval/evaluate.py``).

The official scores are percentages of a whole file, rounded to two digits; these are of one answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["clean", "string_match_all", "string_match_part"]

CONTROL = re.compile(r"[\x00-\x1f]")


def clean(prediction: str) -> str:
    """An answer as RULER compares it: control characters become line breaks."""
    return CONTROL.sub("\n", prediction.strip()).strip()


def string_match_all(prediction: str, answers: Sequence[str]) -> float:
    """The share of the answers that were given."""
    return sum(_found(prediction, answers)) / len(answers)


def string_match_part(prediction: str, answers: Sequence[str]) -> float:
    """Whether any of the answers was given."""
    return float(any(_found(prediction, answers)))


def _found(prediction: str, answers: Sequence[str]) -> list[bool]:
    text = clean(prediction).lower()
    return [answer.lower() in text for answer in answers]
