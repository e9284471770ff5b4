"""What is wrong with the fields of a row, in words that say which field and why."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

__all__ = ["Values", "wrong_answers", "wrong_language", "wrong_texts"]

LANGUAGES = {"en": ("en", "english"), "zh": ("zh", "cn", "chinese")}

Values = dict[str, Any]


def wrong_texts(
    values: Values, names: Iterable[str], may_be_empty: Collection[str] = ()
) -> str | None:
    """What is wrong with fields that should be texts."""
    for name in names:
        value = values.get(name)
        if value is None:
            return f"the field {name!r} is missing"
        if not isinstance(value, str):
            return f"the field {name!r} is a {type(value).__name__}, not a text"
        if not value.strip() and name not in may_be_empty:
            return f"the field {name!r} is empty"
    return None


def wrong_answers(values: Values, name: str = "answers") -> str | None:
    """What is wrong with a field that should be a list of texts."""
    if name not in values:
        return f"the field {name!r} is missing"
    answers = values[name]
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        return f"the field {name!r} is {str(answers)[:60]!r}, not a list of texts"
    if not any(answer.strip() for answer in answers):
        return f"the field {name!r} has no answer"
    return None


def wrong_language(values: Values, language: str) -> str | None:
    """Whether a row says that it is in the other language than its set, ``en`` or ``zh``."""
    said = str(values.get("language", language)).lower()
    others = [name for key, names in LANGUAGES.items() if key != language for name in names]
    if language in LANGUAGES and said in others:
        return f"its language is {values['language']!r}, the set's is {language!r}"
    return None
