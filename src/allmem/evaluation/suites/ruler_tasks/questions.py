"""Questions with documents that answer them, from the user's data folder.

RULER takes the development sets of SQuAD 2.0 and HotpotQA. Where those are not there, rows of the
same sort do: NQ-open with its gold passages in place of SQuAD, a part of HotpotQA in place of all
of it. Rows say which, and their numbers are not to be compared.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from allmem.data.config import SourceConfig
from allmem.data.readers import BadRow, read_rows
from allmem.errors import AllMemError
from allmem.evaluation.bad_rows import bad_row
from allmem.evaluation.suites.ruler_tasks.user_files import FOLDERS, find
from allmem.evaluation.task import Setting

__all__ = ["Question", "Questions", "read_questions"]

FILES = {
    "squad": ("squad.json", "dev-v2.0.json", "nq_open_oracle.jsonl.gz", "nq_open_oracle.jsonl"),
    "hotpotqa": (
        "hotpotqa.json",
        "hotpot_dev_distractor_v1.json",
        "hotpotqa_dev_sample100.jsonl.gz",
        "hotpotqa_dev_sample100.jsonl",
    ),
}
"""First choice first; the first two of each are RULER's name and the download's."""
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
        official, _, rows, _ = FILES[dataset]
        where = "the data folder (--data)" if setting.data is None else str(setting.data)
        raise AllMemError(
            f"RULER's questions of {dataset} need {official} or {rows} in {where} or its folder "
            f"{' or '.join(FOLDERS[:2])}; get {ORIGINS[dataset]} and save it there as {official}, "
            "or ask for ruler_generated, the eleven tasks that need no data"
        )
    read = _squad if dataset == "squad" and path.suffix == ".json" else _rows
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
    try:
        articles = json.loads(path.read_text(encoding="utf-8"))["data"]
        paragraphs = [(i, p) for i, article in enumerate(articles) for p in article["paragraphs"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AllMemError(
            f"{path} is not a file of SQuAD ({error!r}); get {ORIGINS['squad']}"
        ) from error
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


def _rows(path: Path, setting: Setting) -> Iterator[_Entry]:
    for row in read_rows(SourceConfig(path=str(path))):
        if isinstance(row, BadRow):
            bad_row(setting, row.reason)
            continue
        try:
            yield _entry(row.values)
        except (KeyError, TypeError, ValueError) as error:
            bad_row(setting, f"{path}, row {row.after.rows}: {_reason(error)}")


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
