"""The metrics of InfiniteBench: what an answer is worth, between 0 and 1.

Source: OpenBMB/InfiniteBench at commit 88b3daa6, ``src/compute_scores.py`` (MIT); the similar
functions of its ``eval_utils.py`` are not the ones that made its table. Where its code fails, over
a number that is no whole one, an answer scores 0 here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from allmem.evaluation.metrics.text import eval_package, f1, normalize_chinese, words

__all__ = ["METRICS", "math_calc"]

MARKS = ("\n", ":", '"', "'", ".", ",", "?", "!", "{", "}")
"""What separates words of an answer besides spaces."""


def qa_f1(prediction: str, label: Sequence[str]) -> float:
    """F1 of English words, the best over the answers."""
    return max((f1(words(prediction), words(answer)) for answer in label), default=0.0)


def qa_f1_chinese(prediction: str, label: Sequence[str]) -> float:
    """F1 of characters, the best over the answers."""
    said = list(normalize_chinese(prediction))
    return max((f1(said, list(normalize_chinese(answer))) for answer in label), default=0.0)


def first_number(prediction: str, label: Any) -> float:
    """Whether the first digits in an answer are the right ones."""
    digits = re.search("[0-9]+", prediction)
    return float(_only(label) == (digits.group() if digits else ""))


def has_value(prediction: str, label: Any) -> float:
    """Whether a word of the answer is the right value."""
    return float(_only(label) in _without(prediction, MARKS).split())


def dialogue_name(prediction: str, label: Sequence[str]) -> float:
    """Whether a word of the answer, in capitals, is the first of the names."""
    return float(label[0] in [word.upper() for word in _without(prediction, MARKS).split()])


def choice(prediction: str, label: Sequence[str]) -> float:
    """Whether an answer chooses the right option: by its first letter, as nothing but the option,
    after words such as "answer is", or by the first word that is a letter.

    Args:
        label: text and letter of the right option.
    """
    prediction = prediction.strip()
    if not prediction:
        return 0.0
    if prediction[0] in "ABCD":
        return float(prediction[0] in label)
    if prediction in label:
        return 1.0
    plain = _without(prediction, (mark for mark in MARKS if mark != ":"))
    plain = re.sub(" {2,}", " ", plain)
    rest = _after(plain, ("answer is:", "answer:", "answer is", "option is"))
    if rest is not None:
        return float(rest.startswith(tuple(label)))
    # A part of "ABCD", such as "BC", counts as a letter and ends the search.
    letter = next((word for word in plain.split() if word in "ABCD"), None)
    return float(letter in label)


def bug(prediction: str, label: Sequence[str]) -> float:
    """Whether an answer names the function with the error, or its letter.

    Args:
        label: name and letter.
    """
    prediction, (name, letter) = prediction.strip(), label
    if prediction[:2] in (f"{letter}.", f"{letter}:"):
        return 1.0
    plain = _without(prediction, ("\n", "`", "'", '"', "-", "*", "Option", "option"))
    plain = re.sub(" {2,}", " ", plain)
    rest = _after(plain, ("answer is:", "is:", "answer:", "correct option is:"))
    return float(rest is not None and rest.startswith((letter, name)))


def code_value(prediction: str, label: Any) -> float:
    """Whether the last word of an answer is the right whole number."""
    said = _without(prediction.strip(), ("\n", ".", "`", "'", '"', ":")).split()
    return float(bool(said) and _number(int, said[-1]) == _only(label))


def math_find(prediction: str, label: Any) -> float:
    """Whether the first number of an answer is the right one."""
    wanted = _only(label)
    number = re.search(r"\d+\.\d+|\d+", prediction)
    return float(number is not None and _number(type(wanted), number.group()) == wanted)


def math_calc(prediction: str, label: Sequence[Any], *, skip: int = 0) -> float:
    """Share of the values that an answer has right before its first mistake.

    Args:
        skip: numbers at the beginning that do not count; 1 officially for GPT-4, which was made to
            repeat the expression's first one.
    """
    values = label[0] if isinstance(label[0], list) else label
    said = [_number(int, digits) for digits in re.findall("[0-9]+", prediction)][skip:]
    right = 0
    for number, value in zip(said, values, strict=False):
        if number != value:
            break
        right += 1
    return right / len(values)


def summary(prediction: str, label: str | Sequence[str]) -> float:
    """ROUGE-Lsum of Google's package, the best over the answers.

    Raises:
        AllMemError: if rouge-score is not installed.
    """
    scorer = eval_package("rouge_score.rouge_scorer", "rouge-score").RougeScorer(["rougeLsum"])
    answers = [label] if isinstance(label, str) else label
    return max(scorer.score(answer, prediction)["rougeLsum"].fmeasure for answer in answers)


METRICS: dict[str, tuple[str, Callable[[str, Any], float]]] = {
    "passkey": ("accuracy", first_number),
    "number_string": ("accuracy", first_number),
    "kv_retrieval": ("accuracy", has_value),
    "longbook_qa_eng": ("qa_f1", qa_f1),
    "longbook_qa_chn": ("qa_f1_characters", qa_f1_chinese),
    "longbook_choice_eng": ("accuracy", choice),
    "longbook_sum_eng": ("rouge_lsum", summary),
    "longdialogue_qa_eng": ("accuracy", dialogue_name),
    "math_find": ("accuracy", math_find),
    "math_calc": ("values_right", math_calc),
    "code_run": ("accuracy", code_value),
    "code_debug": ("accuracy", bug),
}
"""By set: what the score is called, and how it is made."""


def _only(label: Any) -> Any:
    """The one answer, which some files have in a list."""
    return label[0] if isinstance(label, list) else label


def _number(kind: type, text: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        return None


def _without(text: str, marks: Any) -> str:
    for mark in marks:
        text = text.replace(mark, " ")
    return text


def _after(text: str, beginnings: Sequence[str]) -> str | None:
    """What follows the first of several beginnings that is there, and a space; ``None`` if none is.

    The order of the beginnings decides, not their place in the text.
    """
    for beginning in beginnings:
        start = text.find(beginning)
        if start >= 0:
            return text[start + len(beginning) + 1 :]
    return None
