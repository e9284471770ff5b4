"""The sentences, names and numbers of planted facts, in English and Chinese.

A subject is something that has one value; ``{name}`` and ``{value}`` are filled in. Plain data, and
functions that draw from it.
"""

from __future__ import annotations

import random
from typing import NamedTuple

__all__ = ["ALL", "Subject", "draw_names", "draw_subject", "draw_values"]


def _words(text: str) -> list[str]:
    return text.split()


class Subject(NamedTuple):
    """Ways to state and to ask one thing about somebody."""

    states: str
    changes: str
    asks: str
    asks_latest: str
    asks_all: str
    values: str
    """What kind of value: ``number``, ``city`` or ``thing``."""


SUBJECTS: dict[str, list[Subject]] = {
    "en": [
        Subject(
            "The pass key of {name} is {value}.",
            "From now on, the pass key of {name} is {value}.",
            "What is the pass key of {name}?",
            "What is the latest pass key of {name}?",
            "What are all the pass keys of {name}, in the order of the text?",
            "number",
        ),
        Subject(
            "It is known that {name} was born in {value}.",
            "The records were corrected: {name} was born in {value}.",
            "In which city was {name} born?",
            "In which city was {name} born, by the latest correction?",
            "Which cities are named as the birthplace of {name}, in the order of the text?",
            "city",
        ),
        Subject(
            "In the locked drawer {name} keeps {value}.",
            "By now {name} keeps {value} in the locked drawer instead.",
            "What does {name} keep in the locked drawer?",
            "What does {name} keep in the locked drawer in the end?",
            "What are all the things that {name} keeps in the locked drawer, in the order of the "
            "text?",
            "thing",
        ),
        Subject(
            "The house of {name} has the number {value}.",
            "Since the renumbering, the house of {name} has the number {value}.",
            "Which number has the house of {name}?",
            "Which number has the house of {name} now?",
            "Which numbers has the house of {name} had, in the order of the text?",
            "number",
        ),
    ],
    "zh": [
        Subject(
            "{name}的通行密码是{value}。",
            "从现在起，{name}的通行密码改为{value}。",
            "{name}的通行密码是什么？",
            "{name}最新的通行密码是什么？",
            "按文中出现的顺序，{name}的通行密码都有哪些？",
            "number",
        ),
        Subject(
            "据说{name}出生在{value}。",
            "后来查明，{name}其实出生在{value}。",
            "{name}出生在哪座城市？",
            "根据最后的更正，{name}出生在哪座城市？",
            "按文中出现的顺序，哪些城市被说成是{name}的出生地？",
            "city",
        ),
        Subject(
            "{name}在上锁的抽屉里放着{value}。",
            "如今，{name}在上锁的抽屉里改放了{value}。",
            "{name}在上锁的抽屉里放着什么？",
            "{name}最后在上锁的抽屉里放着什么？",
            "按文中出现的顺序，{name}在上锁的抽屉里放过哪些东西？",
            "thing",
        ),
    ],
}
FIRST = {
    "en": _words(
        "Ada Bram Celia Doran Edith Fergus Greta Hollis Ines Jasper Kezia Lorne Mabel Niall "
        "Odette Piers Quilla Rowan Sabine Tobias Una Viggo Wilma Xavier Yvette Zeno"
    ),
    "zh": list("赵钱孙李周吴郑王冯陈褚卫蒋沈韩杨朱秦许何吕施张孔曹严华金魏陶"),
}
LAST = {
    "en": _words(
        "Ashdown Birkett Calloway Dunmore Eastlake Farrow Gillespie Harcourt Ingram Jessop "
        "Kettering Lovell Marchbanks Netherby Osgood Penhallow Quarles Ravenhill Stanhope "
        "Thornbury Underhill Vance Wexford Yarrow"
    ),
    "zh": _words(
        "明远 子墨 若兰 书白 云舒 景行 望舒 知秋 清和 怀瑾 听雪 安之 思齐 长风 晚晴 伯言 静姝 如是 "
        "星河 南乔"
    ),
}
VALUES = {
    "en": {
        "city": _words(
            "Lisbon Tromso Nairobi Valparaiso Kyoto Tbilisi Galway Lahore Quito Bergen Izmir "
            "Havana Riga Cusco Dakar Ghent Hobart Jaipur Leipzig Malmo"
        ),
        "thing": [
            f"{a} {b}"
            for a in ("a silver", "a broken", "a blue", "an old", "a small")
            for b in ("compass", "violin string", "music box", "thimble", "chess knight", "map")
        ],
    },
    "zh": {
        "city": _words(
            "里斯本 内罗毕 京都 基多 哈瓦那 里加 大理 泉州 敦煌 喀什 绍兴 开封 洛阳 扬州 桂林 "
            "伊尔库茨克"
        ),
        "thing": [
            f"一{a}{b}"
            for a, b in (
                ("枚", "铜钱"),
                ("支", "断笛"),
                ("只", "木匣"),
                ("把", "旧钥匙"),
                ("块", "怀表"),
                ("张", "地图"),
                ("面", "小镜子"),
                ("串", "珊瑚珠"),
                ("卷", "诗稿"),
                ("封", "家书"),
            )
        ],
    },
}
ALL = {"en": ", ", "zh": "、"}
"""What stands between several answers."""
DIGITS = 5
"""Digits of a number: enough that it is not guessed."""


def draw_subject(rng: random.Random, language: str) -> Subject:
    return rng.choice(SUBJECTS[language])


def draw_names(rng: random.Random, language: str, count: int) -> list[str]:
    """So many different names."""
    between = " " if language == "en" else ""
    names = [f"{a}{between}{b}" for a in FIRST[language] for b in LAST[language]]
    return rng.sample(names, count)


def draw_values(rng: random.Random, language: str, kind: str, count: int) -> list[str]:
    """So many different values."""
    if kind == "number":
        return [str(v) for v in rng.sample(range(10 ** (DIGITS - 1), 10**DIGITS), count)]
    known = VALUES[language][kind]
    if count > len(known):
        raise ValueError(f"there are {len(known)} values of kind {kind}, not {count}")
    return rng.sample(known, count)
