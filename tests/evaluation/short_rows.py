"""A few made-up rows of every short task, in the forms in which folders hold them."""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from pathlib import Path
from typing import Any

__all__ = ["LCB_ROWS", "ROWS", "write_rows"]

Row = dict[str, Any]


def _question(number: int, answer: str) -> Row:
    row = {
        "subject": "law",
        "id": number,
        "question": f"第{number}条规定的河流是____。",
        "answer": answer,
    }
    return row | {"A": "北方的河流", "B": "老人", "C": "春天", "D": "为什么"}


ROWS: dict[str, list[Row]] = {
    "arc_easy_test.jsonl": [
        {"question": "Which river rises?", "choices": ["the old", "north one", "man"],
         "answer": 1},
        {"question": "Who said so?", "choices": ["he", "the old man", "spring"], "answer": 1},
        {"question": "What is wet?", "choices": ["water", "fire"], "answer": 0},
        {"question": "What is it for?", "choices": ["the", "of and to", "in", "that was"],
         "answer": 3},
    ],
    "hellaswag_val.jsonl": [
        {
            "activity_label": "Fishing",
            "ctx": "A man sits by the river. the old man",
            "endings": ["waits.", "flies away over it.", "is true.", "reads."],
            "label": 0,
        },
        {
            "activity_label": "Family Life",
            "ctx": "How to wait. Sit down. Do not move for an hour.",
            "endings": ["Then go.", "Water rises [now].", "Who said so?", "No."],
            "label": 2,
        },
    ],
    "winogrande_val.jsonl": [
        {"sentence": "The cup would not fit in the box as _ was too big.", "option1": "the cup",
         "option2": "the box", "answer": 1},
        {"sentence": "Ann thanked Beth since _ had helped.", "option1": "Ann", "option2": "Beth",
         "answer": 2},
    ],
    "ceval_val.jsonl": [_question(1, "A"), _question(2, "C")],
    "ceval_dev.jsonl": [_question(n, "ABCDA"[n]) for n in range(5)],
    "mmlu_redux.jsonl": [
        {"subject": "virology", "question": "Which river rises?", "choices": ["a", "b", "c", "d"],
         "answer": 2, "error_type": "ok"},
        {"subject": "virology", "question": "Wrong?", "choices": ["a", "b", "c", "d"],
         "answer": 2, "error_type": "wrong_groundtruth"},
        {"subject": "anatomy", "question": "Who said so?", "choices": ["e", "f", "g", "h"],
         "answer": 0, "error_type": "ok"},
    ],
    "gpqa_diamond.jsonl": [
        {"Question": f"Question {n}?", "Correct Answer": "right " * n,
         "Incorrect Answer 1": "it is", "Incorrect Answer 2": "the river",
         "Incorrect Answer 3": "true", "Domain": "none"}
        for n in range(1, 7)
    ],
    "ifeval_input_data.jsonl": [
        {"key": 1, "prompt": "Say something without commas.", "kwargs": [{}],
         "instruction_id_list": ["punctuation:no_comma"]},
        {"key": 2, "prompt": "Use at least 3 words and no comma.",
         "kwargs": [{"relation": "at least", "num_words": 3}, {}],
         "instruction_id_list": ["length_constraints:number_words", "punctuation:no_comma"]},
    ],
    "math500_test.jsonl": [
        {"problem": "What is $1+1$?", "solution": "It is $\\boxed{2}$.", "answer": "2"},
        {"problem": "Halve one.", "solution": "So $\\boxed{\\frac{1}{2}}$.",
         "answer": "\\frac{1}{2}"},
    ],
}  # fmt: skip


def _packed(tests: list[Row]) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests)))).decode()


LCB_ROWS: list[Row] = [
    {
        "question_id": "abc1_a",
        "question_content": "Print twice the number.",
        "platform": "atcoder",
        "difficulty": "easy",
        "contest_date": "2024-01-06T00:00:00",
        "starter_code": "",
        "metadata": "{}",
        "public_test_cases": json.dumps([{"input": "2\n", "output": "4\n", "testtype": "stdin"}]),
        "private_test_cases": _packed([{"input": "0.5\n", "output": "1", "testtype": "stdin"}]),
    },
    {
        "question_id": "3000",
        "question_content": "Add two lists.",
        "platform": "leetcode",
        "difficulty": "hard",
        "contest_date": "2024-02-06T00:00:00",
        "starter_code": "class Solution:\n    def add(self, a: List[int], b: List[int]):\n        ",
        "metadata": json.dumps({"func_name": "add"}),
        "public_test_cases": "[]",
        "private_test_cases": json.dumps(
            [{"input": "[1]\n[2]", "output": "[1, 2]", "testtype": "functional"}]
        ),
    },
]


def write_rows(folder: Path, rows: dict[str, list[Row]] = ROWS) -> Path:
    """Files of rows; and their folder."""
    for name, of_one in rows.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in of_one)
        (folder / name).write_text(text, encoding="utf-8")
    return folder
