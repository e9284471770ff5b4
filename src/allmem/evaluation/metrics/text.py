"""Words of answers, and what two answers have in common.

InfiniteBench and LV-Eval took these rules from LongBench (THUDM/LongBench ``metrics.py``): no case,
no punctuation; in English no articles, in Chinese no white space and the words of jieba.
"""

from __future__ import annotations

import re
import string
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from typing import Any

from allmem.errors import AllMemError

__all__ = [
    "chinese_words",
    "cut_chinese",
    "eval_package",
    "f1",
    "normalize",
    "normalize_chinese",
    "words",
]

ARTICLES = re.compile(r"\b(a|an|the)\b")
CHINESE_PUNCTUATION = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃"
    "》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
)
"""The official list, from which 《 is missing."""
NO_PUNCTUATION = dict.fromkeys(map(ord, string.punctuation))
NO_CHINESE_PUNCTUATION = dict.fromkeys(map(ord, string.punctuation + CHINESE_PUNCTUATION))


def normalize(text: str) -> str:
    """Lower case, without punctuation and articles, one space between words."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(NO_PUNCTUATION)).split())


def words(text: str) -> list[str]:
    """English words that count."""
    return normalize(text).split()


def normalize_chinese(text: str) -> str:
    """Lower case, without punctuation and white space."""
    return "".join(text.lower().translate(NO_CHINESE_PUNCTUATION).split())


def cut_chinese(text: str) -> list[str]:
    """A text in the pieces that jieba sees in it, none lost.

    Raises:
        AllMemError: if jieba is not installed.
    """
    return list(_cutter()(text))


def chinese_words(text: str) -> list[str]:
    """Chinese words that count."""
    return [word for word in map(normalize_chinese, cut_chinese(text)) if word]


def f1(prediction: Sequence[str], answer: Sequence[str]) -> float:
    """Harmonic mean of the shares that two lists of words have in common."""
    same = sum((Counter(prediction) & Counter(answer)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(prediction), same / len(answer)
    return 2 * precision * recall / (precision + recall)


def eval_package(module: str, package: str) -> Any:
    """Import a module that scores need.

    Raises:
        AllMemError: if it is not installed, naming the extra that brings it.
    """
    try:
        with warnings.catch_warnings():
            # Old escapes and imports in these packages are not the user's business.
            warnings.simplefilter("ignore")
            return import_module(module)
    except ModuleNotFoundError as error:
        raise AllMemError(
            f"this score needs {package}, which is not installed; run: pip install 'allmem[eval]'"
        ) from error


@cache
def _cutter() -> Callable[[str], Any]:
    """jieba's own cutter, with its own dictionary.

    Not ``jieba.cut``: another library may have added words to that one. And it would log to stderr
    and trust a cache in the folder for temporary files, which is shared.
    """
    tokenizer = eval_package("jieba", "jieba").Tokenizer()
    tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
    tokenizer.initialized = True
    return tokenizer.cut
