"""The metrics of LongBench: what an answer is worth next to one right answer, between 0 and 1.

Source: THUDM/LongBench at commit 2e00731f, ``LongBench/metrics.py`` and ``eval.py`` (MIT).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher

from allmem.evaluation.metrics.rouge_l import rouge_l, rouge_l_chinese
from allmem.evaluation.metrics.text import chinese_words, f1, words

__all__ = [
    "METRICS",
    "PARAGRAPH",
    "best_score",
    "classification",
    "code_similarity",
    "count",
    "first_line",
    "qa_f1",
    "qa_f1_chinese",
    "retrieval",
    "retrieval_chinese",
]


PARAGRAPH = {"retrieval": re.compile(r"Paragraph (\d+)"), "retrieval_zh": re.compile(r"段落(\d+)")}
"""What answers name, by metric."""


def qa_f1(prediction: str, answer: str) -> float:
    """F1 of English words."""
    return f1(words(prediction), words(answer))


def qa_f1_chinese(prediction: str, answer: str) -> float:
    """F1 of Chinese words."""
    return f1(chinese_words(prediction), chinese_words(answer))


def count(prediction: str, answer: str) -> float:
    """Share of the numbers in the prediction that are the right one."""
    numbers = re.findall(r"\d+", prediction)
    return numbers.count(answer) / len(numbers) if numbers else 0.0


def retrieval(prediction: str, answer: str) -> float:
    """``count``, for an answer such as ``Paragraph 12``."""
    return count(prediction, PARAGRAPH["retrieval"].findall(answer)[0])


def retrieval_chinese(prediction: str, answer: str) -> float:
    """``count``, for an answer such as ``段落12``."""
    return count(prediction, PARAGRAPH["retrieval_zh"].findall(answer)[0])


def code_similarity(prediction: str, answer: str) -> float:
    """Likeness of the first line that is no comment and no fence, in whole percent.

    It is fuzzywuzzy's ``ratio`` over Python's own ``SequenceMatcher``; with python-Levenshtein
    installed, fuzzywuzzy would take another, whose percentages differ.
    """
    lines = prediction.lstrip("\n").split("\n")
    line = next((x for x in lines if "`" not in x and "#" not in x and "//" not in x), "")
    if line == answer:
        return 1.0
    if not line or not answer:
        return 0.0
    return round(100 * SequenceMatcher(None, line, answer).ratio()) / 100


def classification(prediction: str, answer: str, classes: Sequence[str]) -> float:
    """One divided by the number of classes that the prediction names, if the right one is among
    them. A class whose name is a part of the right one's does not count."""
    named = [name for name in classes if name in prediction]
    # The official code shortens the list that it goes through, so that it does not look at the name
    # after one that it removed; scores depend on it.
    for name in named:
        if name in answer and name != answer:
            named.remove(name)
    return 1.0 / len(named) if answer in named else 0.0


METRICS: dict[str, Callable[[str, str], float]] = {
    "qa_f1": qa_f1,
    "qa_f1_zh": qa_f1_chinese,
    "rouge": rouge_l,
    "rouge_zh": rouge_l_chinese,
    "retrieval": retrieval,
    "retrieval_zh": retrieval_chinese,
    "count": count,
    "code_sim": code_similarity,
}
"""By LongBench's names without ``_score``; ``classification`` needs the classes besides."""


def first_line(prediction: str) -> str:
    """What counts of an answer to examples in a row, which models go on with."""
    return prediction.lstrip("\n").split("\n")[0]


def best_score(
    metric: str, prediction: str, answers: Sequence[str], classes: Sequence[str] | None = None
) -> float:
    """The best score over all right answers.

    Args:
        metric: a key of ``METRICS``, or ``classification``.
        classes: all class names, for ``classification``.

    Raises:
        AllMemError: if jieba is needed and not installed.
    """
    if metric == "classification":
        scores = [classification(prediction, answer, classes or ()) for answer in answers]
    else:
        scores = [METRICS[metric](prediction, answer) for answer in answers]
    return max([0.0, *scores])
