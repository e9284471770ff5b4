"""Built samples have the length, depth and distance they claim, and hold the answer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from allmem.data.builders import BUILDERS, Material, make_builder
from allmem.data.builders.haystack import terms
from allmem.data.builders.phrases import FIRST, LAST
from allmem.data.chat import ChatEncoder
from allmem.data.conversation import Conversation
from allmem.errors import AllMemError
from tests.data.folders import TOKENIZER, build, config, write_rows

LIMIT = 3000
ENCODER = ChatEncoder(TOKENIZER)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("builders")
    english = " ".join(f"The river rose by {i} feet, and nobody said so." for i in range(900))
    chinese = "".join(f"第{i}天河水上涨，老人什么也没有说。" for i in range(900))
    (root / "en.txt").write_text(english)
    (root / "zh.txt").write_text(chinese)
    names = ["Lisbon", "Kyoto", "Quito", "Riga", "Dakar", "Bergen"]
    rows = [
        {
            "question": f"Which river flows through {name} number {i}?",
            "context": f"{name} number {i} lies on a river. Its river is called Re{i}x{name}.",
            "answer": f"Re{i}x{name}",
        }
        for i in range(12)
        for name in names
    ]
    chinese_rows = [
        {
            "question": f"第{i}座城在哪条河边？",
            "context": f"第{i}座城在清{i}河边。",
            "answer": f"清{i}河",
        }
        for i in range(60)
    ]
    return {
        "en": str(root / "en.txt"),
        "zh": str(root / "zh.txt"),
        "qa-en": str(write_rows(root / "qa-en.jsonl", rows)),
        "qa-zh": str(write_rows(root / "qa-zh.jsonl", chinese_rows)),
    }


def options(kind: str, language: str, sources: dict[str, str], **more: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"language": language, **more}
    if kind == "haystack":
        made["questions"] = {"path": sources[f"qa-{language}"]}
    elif kind != "key_value":
        made["text"] = [{"path": sources[language]}]
    return made


def builder(kind: str, language: str, sources: dict[str, str], seed: int = 0, **more: Any) -> Any:
    values = config({"path": "x"}, lengths={"long": LIMIT}, seed=seed)
    material = Material(TOKENIZER, "long", values)
    return make_builder(kind, options(kind, language, sources, **more), material, "label")


def tokens(sample: Conversation) -> int:
    return sum(len(piece.ids) for piece in ENCODER.encode(sample))


CASES = [(kind, language) for kind in BUILDERS for language in ("en", "zh")]


@pytest.mark.parametrize(("kind", "language"), CASES)
def test_samples_have_the_length_asked_for_and_hold_the_answer(
    kind: str, language: str, sources: dict[str, str]
) -> None:
    made = builder(kind, language, sources, tokens=(1000, 1200))
    for n in range(6):
        sample = made.sample(n)
        document, answer = str(sample.document), sample.responses[0]
        # Whole sentences, lines or passages: up to one of them is missing.
        assert 880 < tokens(sample) <= 1200
        for part in answer.split(", " if language == "en" else "、"):
            assert part in document
        assert sample.whole
        assert sample.info["kind"] == kind


def test_many_passages_fit_exactly(sources: dict[str, str]) -> None:
    made = builder("haystack", "en", sources, tokens=2400)
    for n in range(4):
        sample = made.sample(n)
        assert str(sample.document).count("Passage ") > 30
        assert 2300 < tokens(sample) <= 2400


@pytest.mark.parametrize(("kind", "language"), CASES)
def test_a_sample_is_a_function_of_seed_and_number(
    kind: str, language: str, sources: dict[str, str]
) -> None:
    first, again = (builder(kind, language, sources, tokens=800) for _ in range(2))
    again.sample(0)
    assert first.sample(3) == again.sample(3)
    assert first.sample(3) != first.sample(4)
    assert builder(kind, language, sources, seed=1, tokens=800).sample(3) != first.sample(3)


@pytest.mark.parametrize(("kind", "language"), CASES)
def test_what_is_asked_for_is_provably_older_than_the_window(
    kind: str, language: str, sources: dict[str, str]
) -> None:
    more = {} if kind in ("key_value", "haystack") else {"count": 3}
    made = builder(kind, language, sources, tokens=1200, min_distance=700, depth=[0.0, 1.0], **more)
    for n in range(8):
        sample = made.sample(n)
        pieces = ENCODER.encode(sample)
        document = next(piece for piece in pieces if piece.kind == "document")
        answer = sample.responses[0].split(", " if language == "en" else "、")[-1]
        # The last place at which the value is said, counted from the first token of the answer.
        end = document.text.rindex(answer) + len(answer)
        spans = made.material.spans(document.text)
        behind = int((spans[:, 0] >= end).sum())
        before = [p.kind for p in pieces].index("response")
        at = [p.kind for p in pieces].index("document")
        distance = behind + sum(len(p.ids) for p in pieces[at + 1 : before])
        assert distance >= 700
        assert sample.info["distance"] <= distance


@pytest.mark.parametrize("kind", ["facts", "key_value", "haystack"])
def test_depth_is_obeyed(kind: str, sources: dict[str, str]) -> None:
    made = builder(kind, "en", sources, tokens=1500, depth=[0.4, 0.6])
    for n in range(6):
        assert 0.3 < made.sample(n).info["depth"][0] < 0.7


def test_the_last_of_several_values_wins(sources: dict[str, str]) -> None:
    made = builder("updates", "en", sources, tokens=900, count=4)
    names = [f"{a} {b}" for a in FIRST["en"] for b in LAST["en"]]
    for n in range(6):
        sample = made.sample(n)
        name = next(n for n in names if n in sample.messages[0].content)
        stated = [s for s in re.split(r"(?<=[.]) ", str(sample.document)) if name in s]
        assert len(stated) == 5
        assert [sample.responses[0] in s for s in stated] == [False] * 4 + [True]


def test_needles_are_answered_in_the_order_of_the_text(sources: dict[str, str]) -> None:
    sample = builder("needles", "en", sources, tokens=900, count=5).sample(0)
    values = sample.responses[0].split(", ")
    places = [str(sample.document).index(value) for value in values]
    assert len(values) == 5
    assert places == sorted(places)
    assert len(sample.info["depth"]) == 5


def test_distractors_do_not_hold_the_answer_and_hard_ones_are_found(
    sources: dict[str, str],
) -> None:
    made = builder("haystack", "en", sources, tokens=600, hard=5)
    for n in range(6):
        sample = made.sample(n)
        document = str(sample.document)
        assert document.count(sample.responses[0]) == 1
        city, number = sample.messages[0].content.strip("?").split(" number ")
        alike = document.count(city.split()[-1] + " number") + document.count(f" {number} lies")
        assert alike > 2


def test_every_question_is_asked_once_before_any_comes_again(sources: dict[str, str]) -> None:
    made = builder("haystack", "en", sources, tokens=400)
    asked = [made.sample(n).messages[0].content for n in range(72)]
    assert len(set(asked)) == 72


def test_chinese_is_found_by_characters_and_pairs() -> None:
    assert terms("清河 River") == ["清", "河", "清河", "river"]


@pytest.mark.parametrize(
    ("kind", "more", "says"),
    [
        ("facts", {"tokens": 5000}, "at most 3000"),
        ("facts", {"tokens": 500, "min_distance": 450}, "does not fit"),
        ("facts", {"depth": [0.7, 0.2]}, "depth"),
        ("facts", {"cuont": 3}, "did you mean 'count'"),
        ("facts", {"language": "de"}, "one of 'en', 'zh'"),
        ("facts", {"count": 100, "tokens": 600}, "leave no room"),
        ("facts", {"text": []}, "no text"),
        ("needles", {"count": 50}, "between 1 and 10"),
        ("haystack", {"max_passage": 3}, "at most 3 tokens"),
    ],
)
def test_impossible_wishes_are_refused(
    kind: str, more: dict[str, Any], says: str, sources: dict[str, str]
) -> None:
    material = Material(TOKENIZER, "long", config({"path": "x"}, lengths={"long": LIMIT}))
    wishes = {**options(kind, "en", sources), **more}
    with pytest.raises(AllMemError, match=says):
        make_builder(kind, wishes, material, "label").sample(0)


def test_builders_are_sources_of_a_build(tmp_path: Path, sources: dict[str, str]) -> None:
    source = {
        "build": "facts",
        "take": 7,
        "length": "long",
        "options": {"text": [{"path": sources["en"]}], "count": 2},
    }
    index = build(config(source, lengths={"long": 1000}), tmp_path / "out")
    assert index.counts == {"facts": {"kept": 7}}
    with pytest.raises(AllMemError, match="did you mean 'facts'"):
        build(config({**source, "build": "fact"}), tmp_path / "other")
