"""Answers of models that think aloud before them, whether they were told to or not.

A row keeps all that a model said; what it thought is taken off where the answer is scored.
"""

from __future__ import annotations

__all__ = ["after_thinking"]

END_OF_THINKING = "</think>"
"""Of Qwen3 and its followers; lm-eval's ``think_end_token``."""


def after_thinking(text: str) -> str:
    """The answer proper of a model that thought aloud before it."""
    _, found, answer = text.rpartition(END_OF_THINKING)
    return answer.lstrip() if found else text
