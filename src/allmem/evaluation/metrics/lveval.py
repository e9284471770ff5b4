"""The metrics of LV-Eval: those of LongBench, behind a gate of keywords and without common words.

Source: infinigence/LVEval at commit 63e7ae93, ``metrics.py`` (MIT). Where its code divides by zero,
because keywords have no word that counts, an answer scores 0 here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence

from allmem.evaluation.benchmarks import benchmark
from allmem.evaluation.metrics.longbench import qa_f1, qa_f1_chinese
from allmem.evaluation.metrics.rouge_l import STEPS_CHINESE, rouge_l
from allmem.evaluation.metrics.text import (
    chinese_words,
    cut_chinese,
    f1,
    normalize_chinese,
    words,
)

__all__ = ["METRICS", "keyword_f1", "keyword_f1_chinese", "rouge_without_common_words"]

RECALL = 0.2
"""Of the keywords, below which an English answer is worth nothing."""
RECALL_CHINESE = 0.4


def keyword_f1(prediction: str, answer: str, keywords: str | None = None) -> float:
    """F1 of English words, if enough of the keywords, where there are any, are in the answer."""
    said = words(prediction)
    if keywords and not _has_keywords(said, words(keywords), _common_words("en"), RECALL):
        return 0.0
    return f1(said, words(answer))


def keyword_f1_chinese(prediction: str, answer: str, keywords: str | None = None) -> float:
    """F1 of Chinese words, if enough of the keywords are in the answer; without keywords, enough of
    the right answer's words."""
    said, right = chinese_words(prediction), chinese_words(answer)
    wanted = chinese_words(keywords) if keywords else right
    if not _has_keywords(said, wanted, _common_words("zh"), RECALL_CHINESE):
        return 0.0
    return f1(said, right)


def rouge_without_common_words(prediction: str, answer: str, keywords: str | None = None) -> float:
    """ROUGE-L of Chinese words without the common ones; no gate."""
    return rouge_l(_uncommon(prediction), _uncommon(answer), steps=STEPS_CHINESE)


def _uncommon(text: str) -> str:
    # Cut twice, as the official code does: words may be seen differently between spaces.
    pieces = cut_chinese(" ".join(cut_chinese(text)))
    kept = map(normalize_chinese, pieces)
    return " ".join(word for word in kept if word not in _common_words("zh"))


def _has_keywords(
    said: Sequence[str], wanted: Sequence[str], common_words: Collection[str], recall: float
) -> bool:
    """Whether so large a share of the keywords was said. Common words are never found, but the
    share is one of all keywords."""
    same = Counter(said) & Counter(wanted)
    found = sum(number for word, number in same.items() if word not in common_words)
    return bool(wanted) and found / len(wanted) >= recall


def _common_words(language: str) -> Collection[str]:
    return benchmark("lveval")["common_words"][language]


METRICS: dict[str, Callable[[str, str, str | None], float]] = {
    "qa_f1_score": lambda prediction, answer, keywords: qa_f1(prediction, answer),
    "qa_f1_zh_score": lambda prediction, answer, keywords: qa_f1_chinese(prediction, answer),
    "qa_f1_score_with_gold_ans": keyword_f1,
    "qa_f1_zh_score_with_gold_ans": keyword_f1_chinese,
    "rouge_zh_score_blacklist": rouge_without_common_words,
}
"""By LV-Eval's names."""
