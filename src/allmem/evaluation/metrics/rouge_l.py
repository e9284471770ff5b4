"""ROUGE-L as the package ``rouge`` 1.0.1 computes it, which LongBench and LV-Eval use.

Like the package it counts each word once: what is compared is the set of the words in the longest
common subsequences of all pairs of sentences. Sentences end at ".", words at spaces.

The package recurs once per step back through the table of subsequences. Beyond Python's limit it
fails, which the official code scores with 0; here the same number of steps is the limit, wherever
in a program this is called.
"""

from __future__ import annotations

from allmem.evaluation.metrics.text import cut_chinese

__all__ = ["rouge_l", "rouge_l_chinese"]

STEPS = 990
"""That LongBench's ``eval.py`` gets to under Python 3.11 (limit 1000), measured with made-up
sentences."""
STEPS_CHINESE = 989
"""The same where a function for Chinese lies between, in LongBench and in LV-Eval."""


def rouge_l(prediction: str, answer: str, *, steps: int = STEPS) -> float:
    """F of words separated by spaces; 0 for an empty text, and for one that is too long."""
    said, wanted = _sentences(prediction), _sentences(answer)
    if not said or not wanted:
        return 0.0
    shared: set[str] = set()
    for sentence in wanted:
        for other in said:
            common = _in_common(sentence, other, steps)
            if common is None:
                return 0.0
            shared |= common
    recall = len(shared) / len({word for sentence in wanted for word in sentence})
    precision = len(shared) / len({word for sentence in said for word in sentence})
    return 2.0 * ((precision * recall) / (precision + recall + 1e-8))


def rouge_l_chinese(prediction: str, answer: str) -> float:
    """F of the pieces into which jieba cuts two texts.

    Raises:
        AllMemError: if jieba is not installed.
    """
    said, wanted = " ".join(cut_chinese(prediction)), " ".join(cut_chinese(answer))
    return rouge_l(said, wanted, steps=STEPS_CHINESE)


def _sentences(text: str) -> list[list[str]]:
    """Each as its words; one of nothing but white space has one, which is empty."""
    return [" ".join(part.split()).split(" ") for part in text.split(".") if part]


def _in_common(first: list[str], second: list[str], steps: int) -> set[str] | None:
    """Words of the longest common subsequence; ``None`` if going back through the table takes more
    than ``steps``.

    Of several longest ones it is the package's.
    """
    lengths = [[0] * (len(second) + 1)]
    for word in first:
        above, row = lengths[-1], [0]
        for j, other in enumerate(second):
            row.append(above[j] + 1 if word == other else max(above[j + 1], row[j]))
        lengths.append(row)
    i, j, taken, common = len(first), len(second), 0, set()
    while i and j:
        taken += 1
        if first[i - 1] == second[j - 1]:
            i, j = i - 1, j - 1
            common.add(first[i])
        elif lengths[i - 1][j] > lengths[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return common if taken <= steps else None
