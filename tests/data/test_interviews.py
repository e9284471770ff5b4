"""Interviews: answers that are learned rest on facts that the window has lost."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from allmem.data.builders.phrases import SUBJECTS
from allmem.data.interviews import TOPICS, VALUES, Interviewer, Interviews
from allmem.data.made_rows import HELD_OUT, NAMES
from allmem.errors import AllMemError
from tests.data.tokenizers import ENDS, small_tokenizer

WINDOW = 60


@pytest.fixture(autouse=True, scope="module")
def _short_book() -> Iterator[None]:
    """A book that is tokenised in no time; its words are no names."""
    draw = random.Random(0)
    words = ["the", "old", "river", "rose", "north", "of", "what", "was", "said", "true", "and"]
    with pytest.MonkeyPatch.context() as patch:
        text = " ".join(draw.choice(words) for _ in range(3000))
        patch.setattr("allmem.data.made_rows.load_book", lambda name: text)
        yield


def interviewer(
    window: int = WINDOW, held_out: bool = False, template: str = "qwen3", **settings: Any
) -> Interviewer:
    chosen = Interviews(**{"counts": (3, 5), "scattered": (0, 20), "gaps": (20,), **settings})
    return Interviewer(chosen, small_tokenizer(template), window, held_out=held_out)


@pytest.mark.parametrize("template", sorted(ENDS))
def test_every_learned_answer_says_a_fact_that_the_window_has_lost(template: str) -> None:
    made = interviewer(template=template)
    tokenizer = made.tokenizer
    answers = 0
    for number in range(6):
        row = made.row(number)
        ids, labels = row["input_ids"], row["labels"]
        learned = (labels >= 0).nonzero()[:, 0].tolist()
        assert labels[learned].equal(ids[learned])
        begins = [i for i in learned if i - 1 not in learned]
        for begin in begins:
            end = next(i for i in range(begin, len(ids) + 1) if i not in learned)
            says = tokenizer.decode(ids[begin:end]).removesuffix(ENDS[template])
            assert says != tokenizer.decode(ids[begin:end])
            # What the position that predicts the answer's first token does not see.
            lost = tokenizer.decode(ids[: begin - made.window])
            assert says in lost
            answers += 1
    assert answers > 12


@pytest.mark.parametrize("template", sorted(ENDS))
def test_values_alone_are_learned_if_wanted(template: str) -> None:
    whole, values = (
        interviewer(template=template, counts=(5,), values_only=only) for only in (False, True)
    )
    for number in range(6):
        row, own = whole.row(number), values.row(number)
        assert own["input_ids"].equal(row["input_ids"])
        answers, told = (_pieces(one, whole.tokenizer) for one in (row, own))
        assert len(answers) == len(told) > 0
        for answer, value in zip(answers, told, strict=True):
            assert value in answer
            assert len(value) < len(answer) / 2
            assert any(f"{value.strip()}{rest}" in answer for rest in (".", " "))


def _pieces(row: dict[str, Any], tokenizer: Any) -> list[str]:
    """What is learned of a row, run by run."""
    found: list[list[int]] = []
    before = False
    for label in row["labels"].tolist():
        if label >= 0:
            found = [*found[:-1], [*found[-1], label]] if before else [*found, [label]]
        before = label >= 0
    return [tokenizer.decode(ids) for ids in found]


def test_a_large_window_leaves_the_youngest_facts_out() -> None:
    few, many = (
        sum(int((interviewer(window).row(i)["labels"] >= 0).sum()) for i in range(5))
        for window in (150, 10)
    )
    assert 0 < few < many


def test_every_fact_is_asked_for_once() -> None:
    made = interviewer(1, counts=(5,), template="smollm2")
    for number in range(4):
        text = made.tokenizer.decode(made.row(number)["input_ids"])
        document, *turns = text.split("<|im_start|>assistant\n")
        answers = [turn.partition("<|im_end|>")[0] for turn in turns]
        assert len(answers) == 5
        assert all(document.count(answer) == 1 for answer in answers)


def test_rows_follow_seed_and_number() -> None:
    one, other = interviewer(), interviewer()
    assert one.row(3)["input_ids"].equal(other.row(3)["input_ids"])
    assert not one.row(3)["input_ids"].equal(one.row(4)["input_ids"])


def test_held_out_names_are_never_trained_on() -> None:
    def said(held_out: bool) -> str:
        made = interviewer(1, held_out, counts=(12,), scattered=(0,))
        return " ".join(made.tokenizer.decode(made.row(i)["input_ids"]) for i in range(8))

    trained, judged = said(False), said(True)
    assert not any(f" {name} " in trained for name in NAMES[:HELD_OUT])
    assert sum(f" {name} " in judged for name in NAMES[:HELD_OUT]) > 12


def test_a_row_is_no_longer_than_promised() -> None:
    made = interviewer(1)
    lengths = [len(made.row(i)["input_ids"]) for i in range(30)]
    assert max(lengths) <= 1.1 * made.longest


def test_training_sentences_are_not_those_of_the_probes() -> None:
    probes = {phrase for subjects in SUBJECTS.values() for s in subjects for phrase in s}
    assert not probes & {phrase for topic in TOPICS for phrase in (topic.says, topic.asks)}
    assert all(topic.values in {*VALUES, "number", "person"} for topic in TOPICS)
    for topic in TOPICS:
        assert "{name}" in topic.says
        assert "{value}" in topic.says
        assert "{name}" in topic.asks


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"counts": ()}, "counts is empty"),
        ({"counts": (99,)}, "counts: 99 must be at most"),
        ({"gaps": (-1,)}, "gaps: -1 must be 0 or more"),
        ({"scattered": ()}, "scattered is empty"),
        ({"digits": (0,)}, "digits: 0 must be 1 or more"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(AllMemError, match=named):
        Interviews(**settings)


def test_interviews_within_the_window_are_refused() -> None:
    with pytest.raises(AllMemError, match="no fact older than the window of 5000"):
        interviewer(5000).row(0)
