"""What an answer to a probe is worth: the right words in the text, and how likely they were.

Everything is made from a stored row; no model is needed.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from allmem.evaluation.thinking import after_thinking

__all__ = ["place_of", "score_answer"]

THOUSANDS = re.compile(r"(?<=\d)[,\u00a0\u202f](?=\d{3}(?!\d))")


def place_of(answer: str, text: str) -> int | None:
    """Where an answer first stands in a text; ``None`` if it does not.

    Case, width and spaces do not matter. Numbers and words of Latin letters count as wholes: 123
    does not stand in 91234.
    """
    body, wanted = _normalised(text), _normalised(answer)
    before = r"(?<![0-9a-z])" if re.match("[0-9a-z]", wanted) else ""
    after = r"(?![0-9a-z])" if re.search("[0-9a-z]$", wanted) else ""
    found = re.search(before + re.escape(wanted) + after, body)
    return found.start() if found else None


def score_answer(question: Mapping[str, Any], answer: Mapping[str, Any]) -> dict[str, float]:
    """What an answer is worth, by metric; thoughts before it do not count.

    ``exact``: share of the answers wanted that its text holds (of several to choose from: whether
    the right one comes first); ``stale``: whether it holds a former value instead; ``choice``:
    whether the right one of several is the likeliest, or comes first in the text where likelihoods
    are not known (none of them: what a guess is worth); ``answer_accuracy`` and ``answer_nll``:
    share of the right answer's tokens that were the likeliest in their places, and nats per token.
    """
    text = after_thinking(answer["prediction"])
    wanted, rivals = question["answers"], question["rivals"]
    held = [place_of(one, text) is not None for one in wanted]
    scores = {"exact": sum(held) / len(held)}
    if rivals:
        first = _first(text, [*wanted, *rivals])
        scores["exact"] = float(first == 0)
        scores["choice"] = 1 / (1 + len(rivals)) if first is None else float(first == 0)
    if question["stale"]:
        old = any(place_of(one, text) is not None for one in question["stale"])
        scores["stale"] = float(old and not all(held))
    likely = answer.get("likely")
    if likely:
        gold, *others = likely
        tokens = max(gold["tokens"], 1)
        scores["answer_accuracy"] = gold["right"] / tokens
        scores["answer_nll"] = gold["nll"] / tokens
        if rivals:
            scores["choice"] = float(all(gold["nll"] < other["nll"] for other in others))
    return scores


def _first(text: str, options: Sequence[str]) -> int | None:
    """Which option comes first in a text."""
    places = [(place_of(option, text), i) for i, option in enumerate(options)]
    known = [(place, i) for place, i in places if place is not None]
    return min(known)[1] if known else None


def _normalised(text: str) -> str:
    text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(THOUSANDS.sub("", text).split())
