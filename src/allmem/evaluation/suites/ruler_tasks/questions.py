"""Questions with documents that answer them, from the user's data folder.

RULER takes the development sets of SQuAD 2.0 and HotpotQA. Where those are not there, rows of the
same sort do: NQ-open with its gold passages in place of SQuAD, a part of HotpotQA in place of all
of it. Rows say which, and their numbers are not to be compared.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from allmem.errors import AllMemError
from allmem.evaluation.bad_rows import bad_row
from allmem.evaluation.suites.ruler_tasks.user_files import FOLDERS, find
from allmem.evaluation.task import Setting
from allmem.evaluation.user_files import read_json, user_rows

__all__ = ["Question", "Questions", "read_questions"]

FILES = {
    "squad": ("squad.json", "dev-v2.0.json", "nq_open_oracle.jsonl"),
    "hotpotqa": (
        "hotpotqa.json",
        "hotpot_dev_distractor_v1.json",
        "hotpotqa_dev_sample100.jsonl",
    ),
}
"""RULER's name, the download's, and other rows, all of which may be packed."""
ORIGINS = {
    "squad": "https://rajpurkar.github.io/SQuAD-explorer/dataset/dev-v2.0.json",
    "hotpotqa": "http://curtis.ml.cmu.edu/datasets/hotpot/hotpot_dev_distractor_v1.json",
}
"""As in RULER's ``download_qa_dataset.sh``."""


@dataclass(frozen=True)
class Question:
    """A question; documents are told by their numbers."""

    text: str
    answers: tuple[str, ...]
    documents: tuple[int, ...]
    """That always come with it."""
    evidence: tuple[int, ...]
    """Those of them that tell the answer."""
    related: tuple[int, ...]
    """On the same subject, the first choice to fill a length with."""


@dataclass(frozen=True)
class Questions:
    """A set of questions, and the documents of all of them."""

    asked: tuple[Question, ...]
    documents: tuple[str, ...]
    material: str


@dataclass(frozen=True)
class _Entry:
    """A document, with or without a question about it."""

    documents: list[str]
    question: str | None = None
    answers: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()
    subject: Hashable | None = None


def read_questions(setting: Setting, dataset: str) -> Questions:
    """The questions of a data set.

    Args:
        dataset: ``squad`` or ``hotpotqa``.

    Raises:
        AllMemError: if there is no file of it, or one with rows that cannot be read.
    """
    path = find(setting.data, *FILES[dataset])
    if path is None:
        official, _, rows = FILES[dataset]
        where = "the data folder (--data)" if setting.data is None else str(setting.data)
        raise AllMemError(
            f"RULER's questions of {dataset} need {official} or {rows} in {where} or its folder "
            f"{' or '.join(FOLDERS[:2])}, also as .gz or .xz; get {ORIGINS[dataset]} and save it "
            f"there as {official}, or ask for ruler_generated, the eleven tasks that need no data"
        )
    read = _squad if dataset == "squad" and FILES[dataset][2] not in path.name else _rows
    entries = list(read(path, setting))
    texts = sorted({text for entry in entries for text in entry.documents})
    number = {text: i for i, text in enumerate(texts)}
    subjects: dict[Hashable, dict[int, None]] = defaultdict(dict)
    for entry in entries:
        if entry.subject is not None:
            subjects[entry.subject].update(dict.fromkeys(number[text] for text in entry.documents))
    asked = []
    for entry in entries:
        if entry.question is None:
            continue
        own = dict.fromkeys(number[text] for text in entry.documents)
        related = subjects[entry.subject] if entry.subject is not None else {}
        asked.append(
            Question(
                entry.question,
                entry.answers,
                tuple(own),
                tuple(dict.fromkeys(number[text] for text in entry.evidence)),
                tuple(i for i in related if i not in own),
            )
        )
    if not asked:
        raise AllMemError(f"{path} holds no questions; get {ORIGINS[dataset]}")
    return Questions(tuple(asked), tuple(texts), path.name)


def _squad(path: Path, setting: Setting) -> Iterator[_Entry]:
    paragraphs = read_json(path, _paragraphs, "a file of SQuAD", f"get {ORIGINS['squad']}")
    for number, (subject, paragraph) in enumerate(paragraphs, 1):
        try:
            text, questions = _text(paragraph["context"]), list(paragraph["qas"])
        except (KeyError, TypeError, ValueError) as error:
            bad_row(setting, f"{path}, paragraph {number}: {_reason(error)}")
            continue
        yield _Entry([text], subject=subject)
        for nth, asked in enumerate(questions, 1):
            try:
                if not asked.get("is_impossible"):
                    answers = _answers([answer["text"] for answer in asked["answers"]])
                    yield _Entry([text], _text(asked["question"]), answers, (text,), subject)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                bad_row(setting, f"{path}, paragraph {number}, question {nth}: {_reason(error)}")


def _paragraphs(told: Any) -> list[tuple[int, Any]]:
    """Each with the number of its article."""
    return [(i, p) for i, article in enumerate(told["data"]) for p in article["paragraphs"]]


def _rows(path: Path, setting: Setting) -> Iterator[_Entry]:
    for line in user_rows(path, setting):
        try:
            yield _entry(line.values)
        except (KeyError, TypeError, ValueError) as error:
            bad_row(setting, f"{line.place}: {_reason(error)}")


def _entry(row: dict[str, Any]) -> _Entry:
    """Of a row of HotpotQA, in its own form or with ``paragraphs``, or of NQ-open."""
    question = _text(row["question"])
    if "context" in row:
        texts = {title: f"{title}\n{''.join(lines)}" for title, lines in row["context"]}
        gold = {title for title, _ in row.get("supporting_facts", [])}
    elif "paragraphs" in row:
        texts = {p["title"]: f"{p['title']}\n{_text(p['text'])}" for p in row["paragraphs"]}
        gold = {p["title"] for p in row["paragraphs"] if p.get("gold")}
    else:
        text = f"{row['title']}\n{_text(row['text'])}"
        return _Entry([text], question, _answers(row["answers"]), (text,), row["title"])
    evidence = tuple(text for title, text in texts.items() if title in gold)
    return _Entry(list(texts.values()), question, _answers([row["answer"]]), evidence)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{value!r} is no text")
    return value


def _answers(values: list[Any]) -> tuple[str, ...]:
    if not isinstance(values, list) or not values:
        raise ValueError("there is no answer")
    return tuple(dict.fromkeys(_text(value) for value in values))


def _reason(error: Exception) -> str:
    return f"there is no field {error}" if isinstance(error, KeyError) else str(error)
