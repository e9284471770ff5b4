"""What the probes are made of: how answers are judged, prompts read once, facts placed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from torch import Tensor

import allmem
from allmem.errors import AllMemError
from allmem.evaluation.feeding import PlainModel
from allmem.evaluation.local import LocalModel
from allmem.evaluation.model import EvaluatedModel, Prompt, Session
from allmem.evaluation.probes import TASKS
from allmem.evaluation.probes.asking import Asked, ask, shared_tokens
from allmem.evaluation.probes.books import find_books
from allmem.evaluation.probes.composing import Plant, insert
from allmem.evaluation.probes.filler import Piece, load_filler
from allmem.evaluation.probes.scoring import place_of, score_answer
from allmem.evaluation.task import Setting
from allmem.opening import OpenedModel
from allmem.reading import Sampling
from tests.data.tokenizers import small_tokenizer
from tests.evaluation.benchmark_files import put
from tests.evaluation.oracle import Oracle
from tests.models.tiny import base_model, randomise_memory

QUESTION: dict[str, Any] = {"answers": ["12345"], "stale": [], "rivals": []}


class TestAnswers:
    @pytest.mark.parametrize(
        ("answer", "text", "held"),
        [
            ("12345", "It is 12345.", True),
            ("12345", "It is 12,345.", True),
            ("12345", "密码是12345。", True),
            ("12345", "１２３４５", True),
            ("12345", "912345", False),
            ("12345", "123456", False),
            ("12345", "12 345", False),
            ("Quito", "in QUITO, I think", True),
            ("Quito", "Quitoville", False),
            ("a blue map", "She keeps a  Blue\nmap.", True),
            ("京都", "她出生在京都。", True),
            ("京都", "", False),
        ],
    )
    def test_are_found_as_wholes(self, answer: str, text: str, held: bool) -> None:
        assert (place_of(answer, text) is not None) == held

    def test_of_several_count_by_their_share(self) -> None:
        question = {**QUESTION, "answers": ["1", "2", "3"]}
        assert score_answer(question, {"prediction": "3 and 1"})["exact"] == pytest.approx(2 / 3)

    def test_to_choose_from_count_if_the_right_one_comes_first(self) -> None:
        question = {**QUESTION, "answers": ["Ann"], "rivals": ["Bob"]}
        said = {text: score_answer(question, {"prediction": text}) for text in ("Bob, Ann", "Ann")}
        assert said["Bob, Ann"] == {"exact": 0.0, "choice": 0.0}
        assert said["Ann"] == {"exact": 1.0, "choice": 1.0}
        assert score_answer(question, {"prediction": "no idea"})["choice"] == 0.5

    def test_are_chosen_by_likelihood_where_it_is_known(self) -> None:
        question = {**QUESTION, "answers": ["Ann"], "rivals": ["Bob"]}
        likely = [{"nll": n, "tokens": 2, "right": 1} for n in (1.0, 3.0)]
        scores = score_answer(question, {"prediction": "Bob", "likely": likely})
        assert scores["choice"] == 1.0
        assert scores["answer_nll"] == 0.5
        assert scores["answer_accuracy"] == 0.5
        assert scores["exact"] == 0.0


class Counting(Session):
    """Everything is a function of the tokens read; counts what is read."""

    def __init__(self, counter: list[int]) -> None:
        self.ids: list[int] = []
        self.counter = counter

    @property
    def tokens(self) -> int:  # type: ignore[override]
        return len(self.ids)

    def read(self, ids: Sequence[int]) -> None:
        assert len(ids)
        self.counter[0] += len(ids)
        self.ids += ids

    def losses(self, ids: Sequence[int]) -> Tensor:
        return self.check(ids)[0]

    def check(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        losses = [float(hash((*self.ids, *ids[:i])) % 97) for i in range(len(ids))]
        return torch.tensor(losses), torch.tensor([loss < 50 for loss in losses])

    def write(self, *arguments: Any) -> str:
        return str(hash(tuple(self.ids)))

    def fork(self) -> Self:
        twin = type(self)(self.counter)
        twin.ids = list(self.ids)
        return twin

    @property
    def nbytes(self) -> int:
        return 0


class CountingModel(EvaluatedModel):
    label = "counting"

    def __init__(self) -> None:
        self.counter = [0]
        self.tokenizer = small_tokenizer()

    def identity(self) -> dict[str, Any]:
        return {}

    def complete(self, *arguments: Any) -> Any:
        raise AssertionError

    def session(self) -> Session:
        return Counting(self.counter)


def some_prompts(seed: int) -> list[list[int]]:
    """Such that some begin others, and some are the same."""
    rng = random.Random(seed)
    found = [[rng.randrange(3) for _ in range(rng.randint(1, 8))] for _ in range(12)]
    return [*found, found[0], found[1][:1]]


@pytest.mark.parametrize("seed", range(5))
def test_a_tree_of_prompts_is_read_once_and_answers_as_each_alone(seed: int) -> None:
    prompts = some_prompts(seed)
    model = CountingModel()
    asked = [Asked(Prompt(ids, "", None), (" 12", " 3")) for ids in prompts]
    found = ask(model, asked, Sampling())
    assert model.counter[0] == shared_tokens(prompts)
    assert found == [ask(model, [one], Sampling())[0] for one in asked]


def test_a_space_that_is_a_token_of_its_own_does_not_count() -> None:
    model = CountingModel()
    asked = Asked(Prompt([1, 2], "", None), (" 12345",))
    [found] = ask(model, [asked], Sampling())
    ids = model.tokenizer(" 12345", add_special_tokens=False)["input_ids"]
    assert len(ids) == 6
    assert found["likely"][0]["tokens"] == 5


@pytest.mark.parametrize("kind", ["plain", "converted"])
def test_a_loaded_model_weighs_answers_as_its_likelihoods_do(kind: str) -> None:
    tokenizer = small_tokenizer()
    size = {"vocab_size": len(tokenizer)}
    if kind == "plain":
        source: Any = PlainModel(base_model("qwen3", **size).double(), tokenizer)
    else:
        converted = allmem.convert(base_model("qwen3", **size), window=12, sinks=3, chunk=5)
        randomise_memory(converted)
        source = OpenedModel(converted.double(), tokenizer)
    model = LocalModel(source, kind)
    ids = tokenizer("The river rises in the north, and what he said was true")["input_ids"]
    answer = tokenizer(" the river", add_special_tokens=False)["input_ids"]
    asked = [
        Asked(Prompt(ids[:40], "", None, max_new_tokens=3), (" the river",)),
        Asked(Prompt(ids, "", None, max_new_tokens=3), (" the river",)),
    ]
    found = ask(model, asked, Sampling())
    known = model.likelihoods([(one.prompt.ids or [], answer) for one in asked])
    for one, likely in zip(found, known, strict=True):
        assert one["likely"][0]["nll"] == pytest.approx(-likely.log_probability, rel=1e-4)
    written = model.complete([one.prompt for one in asked], Sampling(), [0, 0])
    assert [one["prediction"] for one in found] == [one.text for one in written]


@pytest.mark.parametrize("seed", range(4))
def test_facts_keep_their_order_and_stand_within_their_bounds(seed: int) -> None:
    rng = random.Random(seed)
    pieces = [Piece("x" * n + ". ", n) for n in (rng.randint(1, 9) for _ in range(30))]
    total = sum(piece.tokens for piece in pieces)
    depths = sorted(rng.random() for _ in range(6))
    plants = [Plant(f"<{i}>", depth) for i, depth in enumerate(depths)]
    first, last = total // 5, total // 2
    text = insert(pieces, plants, first, last, " ")
    places = [text.index(plant.text) for plant in plants]
    assert places == sorted(places)
    for place in places:
        assert first <= text[:place].count("x") <= last + 9


class TestFiller:
    def test_is_the_users_text_where_there_is_one(self, tmp_path: Path) -> None:
        (tmp_path / "books_zh.jsonl").write_text('{"text": "春天来了。河水很高。"}\n')
        filler = load_filler(small_tokenizer(), "zh", Setting(data=tmp_path))
        assert filler.material == "books_zh.jsonl"
        assert [piece.text for piece in filler.pieces] == ["春天来了。", "河水很高。"]

    def test_is_made_up_for_chinese_otherwise(self) -> None:
        filler = load_filler(small_tokenizer(), "zh", Setting())
        assert filler.material == "made-up sentences"
        assert len({piece.text for piece in filler.pieces}) > 300

    def test_is_measured_in_the_tokens_that_it_has(self, tmp_path: Path) -> None:
        tokenizer = small_tokenizer()
        (tmp_path / "books_en.txt").write_text("One two. Three four five!\n\nSix. And so on, 1234")
        filler = load_filler(tokenizer, "en", Setting(data=tmp_path))
        ids = tokenizer(filler.text, add_special_tokens=False)["input_ids"]
        assert sum(piece.tokens for piece in filler.pieces) == len(ids)
        assert sum(piece.tokens for piece in filler.excerpt(1, 50)) == 50

    @pytest.mark.parametrize(
        ("language", "place"),
        [
            ("en", "books/a.txt"),
            ("en", "books_en/a.txt"),
            ("en", "books_en.jsonl"),
            ("en", "books_en.txt.xz"),
            ("zh", "books_zh/a.jsonl.gz"),
            ("zh", "books_zh.txt"),
        ],
    )
    def test_finds_books_of_its_language_in_folder_or_file(
        self, tmp_path: Path, language: str, place: str
    ) -> None:
        kind = place.rsplit("/", maxsplit=1)[-1].split(".")[1]
        put(tmp_path / place, ["Rain." if kind == "txt" else '{"text": "Rain."}'])
        filler = load_filler(small_tokenizer(), language, Setting(data=tmp_path))
        assert filler.text == "Rain."
        assert filler.material == place.split("/", maxsplit=1)[0]
        other = {"en": "zh", "zh": "en"}[language]
        assert find_books(Setting(data=tmp_path), other) is None

    def test_reads_books_of_a_folder_one_after_another(self, tmp_path: Path) -> None:
        for name in ("b", "a"):
            put(tmp_path / "books" / f"{name}.txt", [f"The {name}."])
        put(tmp_path / "books_en.txt", ["Passed over."])
        filler = load_filler(small_tokenizer(), "en", Setting(data=tmp_path))
        assert filler.text == "The a.\n\nThe b."

    def test_of_books_without_text_is_an_error(self, tmp_path: Path) -> None:
        put(tmp_path / "books_en.jsonl", [])
        with pytest.raises(AllMemError, match="holds no text"):
            load_filler(small_tokenizer(), "en", Setting(data=tmp_path))

    def test_without_a_text_is_an_error_that_names_the_row(self, tmp_path: Path) -> None:
        (tmp_path / "books_en.jsonl").write_text('{"text": 5}\n')
        with pytest.raises(AllMemError, match="line 1"):
            load_filler(small_tokenizer(), "en", Setting(data=tmp_path))


class TestFactLists:
    def test_ask_only_for_digits_that_are_out_of_sight(self) -> None:
        model = Oracle(small_tokenizer(), window=60, sinks=20)
        for example in TASKS["probes/fact_lists"]().examples(Setting(limit=2), model):
            ids, counted = example.ask.ids, example.ask.counted
            places = counted.nonzero().flatten().tolist()
            assert places
            # The last four digits, with what stands before them, are found once before.
            number = ids[places[-1] - 3 : places[-1] + 1]
            fact = next(i for i in range(len(ids)) if ids[i : i + 4] == number)
            assert fact >= model.sinks
            assert places[-1] - fact > model.window

    def test_leave_out_the_distances_that_a_window_covers(self) -> None:
        def fillers(window: int) -> set[Any]:
            model = Oracle(small_tokenizer(), window)
            examples = TASKS["probes/fact_lists"]().examples(Setting(limit=1), model)
            return {example.cell["fillers"] for example in examples}

        assert fillers(40) == {0, 128, 512, 2048}
        assert fillers(1500) == {2048}
        assert fillers(5000) == {5000}

    def test_tell_what_a_loaded_model_recalls(self) -> None:
        tokenizer = small_tokenizer()
        plain = base_model("qwen3", vocab_size=len(tokenizer), max_position_embeddings=8192)
        model = LocalModel(PlainModel(plain, tokenizer), "plain")
        task = TASKS["probes/fact_lists"]()
        example = next(iter(task.examples(Setting(limit=1), model)))
        [row] = task.answer(model, [example], Setting())
        [part] = task.parts({**row, "cell": example.cell})
        ids = example.ask.ids
        logits = plain(torch.tensor([ids])).logits[0].detach().float()
        where = example.ask.counted.nonzero().flatten()
        loss = torch.nn.functional.cross_entropy(logits[where - 1], torch.tensor(ids)[where])
        assert part.scores["answer_nll"] == pytest.approx(float(loss), rel=1e-4)
        right = (logits[where - 1].argmax(-1) == torch.tensor(ids)[where]).float().mean()
        assert part.scores["digits"] == pytest.approx(float(right))
