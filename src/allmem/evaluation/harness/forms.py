"""Rows in whatever form they lie in a folder, as the documents that the hub has: one function for
each task, so that lm-eval's own templates read them unchanged.

A function takes a row of the hub's form or of a simpler one (``question``, ``choices``, ``answer``
as a number), gives the document, ``None`` for a row that the task leaves out, and raises
``ValueError`` with what is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from allmem.evaluation.fields import wrong_texts

__all__ = ["arc", "ceval", "gpqa", "hellaswag", "ifeval", "math500", "mmlu_redux", "winogrande"]

Document = dict[str, Any]

LETTERS = "ABCDEFGHIJ"


def arc(row: Document) -> Document:
    """Of ``allenai/ai2_arc``."""
    choices = row.get("choices")
    if isinstance(choices, Mapping):
        texts, labels = _texts(choices.get("text")), choices.get("label")
        answer = row.get("answerKey")
        if not isinstance(labels, list) or answer not in labels:
            raise ValueError(f"answerKey {answer!r} is none of the choices' labels")
    else:
        texts = _texts(choices)
        labels = list(LETTERS[: len(texts)])
        answer = labels[_number(row, "answer", len(texts))]
    return {
        "question": _text(row, "question"),
        "choices": {"text": texts, "label": labels},
        "answerKey": answer,
    }


def hellaswag(row: Document) -> Document:
    """Of ``Rowan/hellaswag``."""
    if "ctx_a" in row:
        first, second = str(row["ctx_a"]), str(row.get("ctx_b") or "")
    else:
        first, second = halves_of_context(_text(row, "ctx"))
    endings = _texts(row.get("endings"))
    return {
        "activity_label": _text(row, "activity_label"),
        "ctx_a": first,
        "ctx_b": second,
        "endings": endings,
        "label": str(_number(row, "label", len(endings))),
    }


def halves_of_context(text: str) -> tuple[str, str]:
    """The halves of a HellaSwag context that was joined, the second of which begins the sentence to
    be ended: lm-eval gives it a capital letter.

    Contexts from captions of videos (3,243 of the 10,042 for validation) end inside a sentence, so
    the second half is what comes after the last full stop. Those from WikiHow end with a sentence,
    and have no second half.
    """
    found = re.fullmatch(r"(.*[.!?][\"')]?)\s+(.*[^.\s])\s*", text, re.DOTALL)
    return (found[1], found[2]) if found else (text, "")


def winogrande(row: Document) -> Document:
    """Of ``allenai/winogrande``."""
    sentence, answer = _text(row, "sentence"), str(row.get("answer"))
    if "_" not in sentence:
        raise ValueError("the field 'sentence' has no gap '_'")
    if answer not in ("1", "2"):
        raise ValueError(f"answer {answer!r} must be 1 or 2")
    options = {name: _text(row, name) for name in ("option1", "option2")}
    return {"sentence": sentence, **options, "answer": answer}


def ceval(row: Document) -> Document:
    """Of ``ceval/ceval-exam``."""
    answer = str(row.get("answer")).strip()
    if answer not in ("A", "B", "C", "D"):
        raise ValueError(f"answer {answer!r} must be A, B, C or D")
    names = ("question", "A", "B", "C", "D")
    return {name: _text(row, name) for name in names} | {"answer": answer}


def mmlu_redux(row: Document) -> Document | None:
    """Of ``fxmarty/mmlu-redux-2.0-ok``: of the whole set, the rows that were found to be right."""
    if row.get("error_type", "ok") != "ok":
        return None
    choices = _texts(row.get("choices"))
    if len(choices) != 4:
        raise ValueError(f"there are {len(choices)} choices, not 4")
    return {
        "question": _text(row, "question"),
        "choices": choices,
        "answer": _number(row, "answer", 4),
    }


def gpqa(row: Document) -> Document:
    """Of ``Idavidrein/gpqa``."""
    names = ("Question", "Correct Answer", *(f"Incorrect Answer {i}" for i in (1, 2, 3)))
    return {name: _text(row, name) for name in names}


def ifeval(row: Document) -> Document:
    """Of ``google/IFEval``."""
    kinds, arguments = row.get("instruction_id_list"), row.get("kwargs")
    if not isinstance(kinds, list) or not isinstance(arguments, list):
        raise ValueError("the fields 'instruction_id_list' and 'kwargs' must be lists")
    if len(kinds) != len(arguments) or not kinds:
        raise ValueError(f"{len(kinds)} instructions have {len(arguments)} sets of arguments")
    return {
        "key": row.get("key"),
        "prompt": _text(row, "prompt"),
        "instruction_id_list": kinds,
        "kwargs": [dict(values or {}) for values in arguments],
    }


def math500(row: Document) -> Document:
    """Of ``HuggingFaceH4/MATH-500``."""
    document = {name: _text(row, name) for name in ("problem", "solution")}
    if not re.search(r"\\(boxed|fbox)", document["solution"]):
        raise ValueError("the field 'solution' has no \\boxed answer")
    return document


def _text(row: Document, name: str) -> str:
    problem = wrong_texts(row, (name,))
    if problem is not None:
        raise ValueError(problem)
    return row[name]


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"the choices are {str(value)[:60]!r}, not a list of texts")
    if not 2 <= len(value) <= len(LETTERS):
        raise ValueError(f"there are {len(value)} choices")
    return value


def _number(row: Document, name: str, count: int) -> int:
    value = row.get(name)
    if isinstance(value, bool) or not re.fullmatch(r"\d+", str(value)) or int(str(value)) >= count:
        raise ValueError(f"the field {name!r} is {value!r}, which is none of {count} choices")
    return int(str(value))
