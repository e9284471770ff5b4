"""RULER: prompts of the right length with RULER's own texts, answers that can be found in them, and
RULER's scores."""

from __future__ import annotations

import hashlib
import json
import lzma
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from allmem.documents import READ, load_book
from allmem.errors import AllMemError
from allmem.evaluation.bad_rows import collected_bad_rows
from allmem.evaluation.benchmarks import benchmark
from allmem.evaluation.metrics.ruler import string_match_all, string_match_part
from allmem.evaluation.prompting import make_prompt
from allmem.evaluation.suites.ruler import GROUPS, TASKS, RulerTask
from allmem.evaluation.suites.ruler_tasks.haystacks import split_sentences
from allmem.evaluation.task import Example, Setting
from tests.data.tokenizers import small_tokenizer

GENERATED = [name.removeprefix("ruler/") for name in GROUPS["ruler_generated"]]
NEEDLES = [name for name in GENERATED if name.startswith("niah")]
SINGLE = [name for name in NEEDLES if "single" in name or "multikey" in name]
NEEDLE = re.compile(r"One of the special magic \w+ for (.+?) is: ([\w-]+)\.")


class Words:
    """A tokenizer with a token for every word, number and mark."""

    chat_template = None

    def __call__(self, text: str, **options: Any) -> dict[str, list[str]]:
        return {"input_ids": re.findall(r"\w+|[^\w\s]", text)}


def model_of(tokenizer: Any) -> Any:
    return SimpleNamespace(tokenizer=tokenizer, label="tested", bounded=False)


def examples(
    name: str, length: int = 4096, limit: int = 3, tokenizer: Any = None, **options: Any
) -> list[Example]:
    setting = Setting(lengths=(length,), limit=limit, **options)
    return list(RulerTask(name).examples(setting, model_of(tokenizer or Words())))


def question_files(folder: Path) -> Path:
    """Twenty articles of three paragraphs, and twenty questions with ten paragraphs each."""
    place = folder / "ruler"
    place.mkdir()
    numbers = random.Random(0)

    def prose(of: str) -> str:
        return f"It is told of {of}: " + " ".join(numbers.choices(["tea", "oak", "sun"], k=50))

    def about(subject: int, part: int) -> dict[str, Any]:
        asked = {"question": f"Who is told of in {subject}.{part}?", "is_impossible": False}
        answers = [{"text": f"hero{subject}x{part}"}]
        impossible = {"question": "Who is not?", "answers": [], "is_impossible": True}
        return {
            "context": prose(f"hero{subject}x{part}"),
            "qas": [{**asked, "answers": answers}, impossible],
        }

    squad = [{"title": str(i), "paragraphs": [about(i, j) for j in range(3)]} for i in range(20)]
    (place / "squad.json").write_text(json.dumps({"data": squad}))
    hotpot = [
        {
            "question": f"Who was in {i}?",
            "answer": f"hero{i}z3",
            "context": [[f"Place {i}.{j}", [prose(f"hero{i}z{j}")]] for j in range(10)],
            "supporting_facts": [[f"Place {i}.3", 0], [f"Place {i}.7", 0]],
        }
        for i in range(20)
    ]
    (place / "hotpotqa.json").write_text(json.dumps(hotpot))
    return folder


def spare(example: Example, length: int, tokenizer: Any, **options: Any) -> int:
    prompt = make_prompt(example.ask, model_of(tokenizer), Setting(**options))
    assert prompt.ids is not None
    assert len(prompt.ids) == example.reference["tokens"]
    return length - len(prompt.ids) - example.ask.max_new_tokens


class TestTexts:
    def test_templates_parameters_and_words_are_rulers(self) -> None:
        # Of the files at the commit that the notice names.
        for keys, digest in {
            ("templates", "tasks", "needle", "noise", "document"): "380b8ffc80f0ed10",
            ("nouns", "adjectives", "verbs"): "304169394ae22c5c",
        }.items():
            values = [benchmark("ruler")[key] for key in keys]
            text = json.dumps(values, ensure_ascii=False, sort_keys=True)
            assert hashlib.sha256(text.encode()).hexdigest().startswith(digest)

    def test_there_are_thirteen_tasks(self) -> None:
        assert len(TASKS) == len(GROUPS["ruler"]) == 13
        assert all(make().name == name for name, make in TASKS.items())

    def test_one_needle_is_asked_for_in_the_singular(self) -> None:
        ask = examples("niah_single_1")[0].ask
        assert ask.text.startswith("A special magic number is hidden within the following text.")
        assert re.fullmatch(
            r" The special magic number for \S.* mentioned in the provided text is",
            ask.answer_prefix,
        )
        assert "What is the special magic number for" in ask.text

    def test_several_needles_are_asked_for_in_the_plural(self) -> None:
        for name in ("niah_multivalue", "niah_multiquery"):
            ask = examples(name)[0].ask
            assert ask.text.startswith("Some special magic numbers are hidden within")
            assert ask.answer_prefix.endswith("mentioned in the provided text are")

    def test_sentences_joined_give_the_text_and_titles_end_none(self) -> None:
        text = " ".join(load_book(READ).split())
        assert " ".join(split_sentences(text)) == text
        assert split_sentences('He met Mr. Day. "Why?" said J. Day. No.') == [
            "He met Mr. Day.",
            '"Why?" said J. Day.',
            "No.",
        ]


class TestLengths:
    @pytest.mark.parametrize("length", [1024, 3000, 8192])
    @pytest.mark.parametrize("name", [name.removeprefix("ruler/") for name in TASKS])
    def test_prompt_and_answer_fill_the_length(
        self, name: str, length: int, tmp_path: Path
    ) -> None:
        found = examples(name, length, data=question_files(tmp_path))
        assert found
        # Nearest it is to one document, one line, one word thrice with its number.
        nearest = 80 if name.startswith("qa") else 45
        for example in found:
            assert 0 <= spare(example, length, Words()) <= nearest

    @pytest.mark.parametrize("thinking", [False, True])
    def test_the_chat_template_counts(self, thinking: bool) -> None:
        tokenizer = small_tokenizer("qwen3")
        found = examples("niah_multivalue", 2048, tokenizer=tokenizer, thinking=thinking)
        assert all(0 <= spare(e, 2048, tokenizer, thinking=thinking) <= 60 for e in found)

    @pytest.mark.slow
    @pytest.mark.smollm2
    @pytest.mark.parametrize("length", [1024, 2048, 4096, 8192])
    def test_with_smollm2s_tokenizer(self, length: int, smollm2: Any) -> None:
        for name in GENERATED:
            for example in examples(name, length, 2, smollm2):
                assert 0 <= spare(example, length, smollm2) <= 100

    def test_truncation_and_longer_answers_change_no_prompt(self) -> None:
        plain = examples("niah_single_2")
        assert examples("niah_single_2", truncate=100, max_new_tokens=5000) == plain

    def test_a_length_that_holds_no_sample_is_refused(self) -> None:
        with pytest.raises(AllMemError, match="does not fit into 128 tokens"):
            examples("vt", 128)

    def test_without_a_tokenizer_there_is_no_length(self) -> None:
        with pytest.raises(AllMemError, match="tested has no tokenizer"):
            list(RulerTask("vt").examples(Setting(), model_of(None)))


class TestAnswers:
    @pytest.mark.parametrize("name", NEEDLES)
    def test_the_keys_asked_for_have_these_values_and_no_others(self, name: str) -> None:
        for example in examples(name, 2048):
            text, query = example.ask.text.rsplit("\n", 1)
            found = NEEDLE.findall(text)
            keys = {key for key, _ in found}
            asked = [key for key in keys if re.search(rf"(for|,|and) {re.escape(key)}\b", query)]
            values = [value for key, value in found if key in asked]
            assert sorted(values) == sorted(example.reference["answers"])
            assert all(text.count(value) == 1 for value in values)
            others = {"niah_multikey_1": 3}.get(name, len(keys) - len(asked))
            assert len(keys) - len(asked) == others

    def test_needle_haystacks_are_full_of_other_needles(self) -> None:
        for name in ("niah_multikey_2", "niah_multikey_3"):
            found = NEEDLE.findall(examples(name)[0].ask.text)
            assert len(found) == len(dict(found)) > 50

    def test_a_chain_of_variables_resolves_to_its_value(self) -> None:
        for example in examples("vt"):
            _, text = example.ask.text.rsplit("Memorize and track", 1)
            values: dict[str, str] = {}
            for name, value in re.findall(r"^VAR (\w+) = (?:VAR )?(\w+) ?$", text, re.MULTILINE):
                values[name] = values.get(value, value)
            asked = re.search(r"assigned the value (\d+) in", text)
            assert asked is not None
            holding = [name for name, value in values.items() if value == asked[1]]
            assert holding == example.reference["answers"]
            assert len(holding) == 5

    def test_the_worked_example_of_variables_is_right(self) -> None:
        worked, _ = examples("vt")[0].ask.text.split("\n\nMemorize")
        names = re.findall(r"^VAR (\w+) =", worked, re.MULTILINE)
        assert worked.endswith("they are:  " + " ".join(names))

    @pytest.mark.parametrize(("length", "common", "rare"), [(2048, 6, 1), (4096, 30, 3)])
    def test_common_words_are_the_commonest(self, length: int, common: int, rare: int) -> None:
        for example in examples("cwe", length):
            _, text = example.ask.text.rsplit("Memorize", 1)
            listed, _ = text.split("\nQuestion")
            words = re.findall(r"\d+\. (.+?)(?= \d+\. |$)", listed)
            counts = Counter(words)
            best = [word for word, count in counts.items() if count == common]
            assert sorted(best) == sorted(example.reference["answers"])
            assert set(counts.values()) == {common, rare}

    @pytest.mark.parametrize("length", [512, 4096])
    def test_frequent_words_are_the_most_frequent(self, length: int) -> None:
        for example in examples("fwe", length):
            text = example.ask.text.split("coded words. ")[1].split("\nQuestion")[0]
            ranked = Counter(text.split()).most_common(5)
            assert ranked[0][0] == "..."
            assert [word for word, _ in ranked[1:4]] == example.reference["answers"]
            assert len({count for _, count in ranked}) == 5

    @pytest.mark.parametrize("name", ["qa_1", "qa_2"])
    def test_the_documents_of_a_question_are_there_once(self, name: str, tmp_path: Path) -> None:
        for example in examples(name, 2048, data=question_files(tmp_path)):
            text = example.ask.text
            assert text.count(example.reference["answers"][0] + ":") == 1
            numbers = [int(number) for number in re.findall(r"^Document (\d+):", text, re.M)]
            assert numbers == list(range(1, len(numbers) + 1))
            assert len(example.reference["distances"]) == (1 if name == "qa_1" else 2)

    def test_paragraphs_of_the_same_article_come_first(self, tmp_path: Path) -> None:
        text = examples("qa_1", 512, data=question_files(tmp_path))[0].ask.text
        assert {"hero0x0", "hero0x1", "hero0x2"} <= set(re.findall(r"hero\w+", text))


class TestDistance:
    @pytest.mark.parametrize("name", SINGLE)
    def test_it_is_the_tokens_after_the_needle(self, name: str) -> None:
        for example in examples(name):
            text = example.ask.text + example.ask.answer_prefix
            answer = example.reference["answers"][0]
            _, after = text.split(f"is: {answer}.")
            assert example.reference["distance"] == len(Words()(after)["input_ids"])
            share = 1 - example.reference["distance"] / example.reference["tokens"]
            assert example.cell["depth"] <= 100 * share < example.cell["depth"] + 10.001

    def test_of_several_it_is_that_of_the_nearest(self) -> None:
        reference = examples("niah_multiquery")[0].reference
        assert len(set(reference["distances"])) == 4
        assert reference["distance"] == min(reference["distances"])

    def test_depths_are_spread(self) -> None:
        for name in ("niah_single_1", "niah_single_2"):
            depths = {example.cell["depth"] for example in examples(name, 2048, 60)}
            assert len(depths) >= 8


class TestSeeds:
    @pytest.mark.parametrize("name", GENERATED)
    def test_the_same_seed_gives_the_same_bytes_whatever_the_limit(self, name: str) -> None:
        many = examples(name, limit=4)
        assert examples(name, limit=2) == many[:2]
        assert all(a != b for a, b in zip(many, examples(name, limit=4, seed=1), strict=True))
        assert len({example.ask.text for example in many}) == 4

    def test_lengths_are_cells_and_ids_are_unique(self) -> None:
        setting = Setting(lengths=(1024, 2048), limit=2)
        found = list(RulerTask("fwe").examples(setting, model_of(Words())))
        assert [example.cell["length"] for example in found] == [1024, 1024, 2048, 2048]
        assert len({example.id for example in found}) == 4
        assert found[2:] == examples("fwe", 2048, 2)

    def test_quick_is_few(self) -> None:
        assert len(examples("niah_single_1", 1024, 500, quick=True)) == 3


class TestMaterial:
    def test_a_novel_takes_the_place_of_the_essays(self) -> None:
        example = examples("niah_single_2")[0]
        assert example.reference["material"] == f"novel {READ}"
        assert "Golden Walter".upper() in example.ask.text

    def test_essays_of_the_user_come_first_and_repeat(self, tmp_path: Path) -> None:
        path = tmp_path / "ruler" / "PaulGrahamEssays.json"
        path.parent.mkdir()
        path.write_text(json.dumps({"text": "This is an essay.\n\nIt  is short."}))
        example = examples("niah_single_2", data=tmp_path)[0]
        assert example.reference["material"] == "PaulGrahamEssays.json"
        assert example.ask.text.count("This is an essay.") > 400
        assert all(0 <= spare(e, 4096, Words()) < 10 for e in examples("niah_single_2"))

    def test_rows_of_nq_open_take_the_place_of_squad(self, tmp_path: Path) -> None:
        rows = [
            {"question": f"q{i}", "answers": [f"a{i}"], "title": f"t{i // 2}", "text": f"A: a{i}."}
            for i in range(30)
        ]
        path = tmp_path / "nq_open_oracle.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in rows))
        example = examples("qa_1", 400, data=tmp_path)[0]
        assert example.reference["material"] == "nq_open_oracle.jsonl"
        assert {"t0\nA: a0.", "t0\nA: a1."} <= set(
            re.findall(r"Document \d+:\n(\w+\n.*)", example.ask.text)
        )

    def test_files_may_be_packed(self, tmp_path: Path) -> None:
        folder = question_files(tmp_path) / "ruler"
        plain = examples("qa_1", data=tmp_path)[0]
        packed = folder / "squad.json.xz"
        packed.write_bytes(lzma.compress((folder / "squad.json").read_bytes()))
        (folder / "squad.json").unlink()
        example = examples("qa_1", data=tmp_path)[0]
        assert example.ask == plain.ask
        assert example.reference["material"] == "squad.json.xz"
        packed.write_bytes(packed.read_bytes()[:-40])
        with pytest.raises(AllMemError, match=r"squad\.json\.xz is damaged.*; get https"):
            examples("qa_1", data=tmp_path)

    def test_missing_questions_are_named_with_their_origin(self, tmp_path: Path) -> None:
        with pytest.raises(AllMemError, match=r"squad\.json or nq_open\S+ in .*https://rajpurkar"):
            examples("qa_1", data=tmp_path)
        with pytest.raises(AllMemError, match=r"hotpotqa\.json .*--data.*ruler_generated"):
            examples("qa_2")

    def test_a_bad_row_is_named_or_left_out(self, tmp_path: Path) -> None:
        rows: list[Any] = json.loads(
            (question_files(tmp_path) / "ruler" / "hotpotqa.json").read_text()
        )
        del rows[1]["answer"]
        (tmp_path / "ruler" / "hotpotqa.json").write_text(json.dumps(rows))
        with pytest.raises(AllMemError, match=r"hotpotqa\.json, row 2: there is no field 'answer'"):
            examples("qa_2", data=tmp_path)
        with collected_bad_rows() as bad:
            found = examples("qa_2", 2048, 30, data=tmp_path, skip_bad_rows=True)
        assert len(found) == 19
        assert len(bad) == 1

    def test_files_of_another_form_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "PaulGrahamEssays.json").write_text("[1]")
        (tmp_path / "squad.json").write_text("{}")
        with pytest.raises(AllMemError, match="is not what RULER's"):
            examples("niah_single_2", data=tmp_path)
        with pytest.raises(AllMemError, match="is not a file of SQuAD"):
            examples("qa_1", data=tmp_path)


# Prediction, answers, and the scores of the official string_match_all and string_match_part, in
# percent of a file with this one line.
OFFICIAL = [
    ("1091313.", ["1091313"], 100.0, 100.0),
    (
        " 4832560, 9918241 and 4608107",
        ["4832560", "9918241", "4608107", "6333729"],
        75.0,
        100.0,
    ),
    ("", ["x"], 0.0, 0.0),
    ("the ANSWER is Video Game", ["video game", "computer game"], 50.0, 100.0),
    ("none of it", ["video game", "computer game"], 0.0, 0.0),
    ("a\tb", ["a\nb", "a\tb", "A"], 66.67, 100.0),
    ("\x00JJFIK JIOLE\x1f", ["JJFIK", "JIOLE", "TPOUB", "GMXXA", "WIXFQ"], 40.0, 100.0),
    ("wilhelm conrad rÖntgen", ["Wilhelm Conrad Röntgen"], 100.0, 100.0),
    (
        "1. serve 2. serve 3. thermals",
        ["ethnicity", "libido", "serve", "thermals", "highway", "fuel", "victory"],
        28.57,
        100.0,
    ),
    ("abc", ["abc", "abc", "zzz"], 66.67, 100.0),
    ("Straße", ["STRASSE", "STRAßE"], 50.0, 100.0),
]


@pytest.mark.parametrize(("prediction", "answers", "every", "any_"), OFFICIAL)
def test_scores_are_the_official_ones(
    prediction: str, answers: list[str], every: float, any_: float
) -> None:
    assert round(100 * string_match_all(prediction, answers), 2) == every
    assert round(100 * string_match_part(prediction, answers), 2) == any_


def test_questions_need_one_answer_and_all_else_every_one() -> None:
    reference = {"answers": ["one", "two"]}
    assert RulerTask("qa_1").score("One", reference) == {"string_match_part": 1.0}
    assert RulerTask("niah_multivalue").score("One", reference) == {"string_match_all": 0.5}


@pytest.fixture(scope="module")
def smollm2() -> Iterator[Any]:
    from allmem.models.sources import load_tokenizer, smollm2_file

    try:
        yield load_tokenizer(smollm2_file())
    except AllMemError as error:
        pytest.skip(str(error))
