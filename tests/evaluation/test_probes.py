"""The probes whose answer is a text: what they hide, how far away it is, and that they can fail."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

import allmem
from allmem.config import WindowConfig
from allmem.errors import AllMemError
from allmem.evaluation.feeding import PlainModel
from allmem.evaluation.local import LocalModel
from allmem.evaluation.probes import GROUPS, TASKS
from allmem.evaluation.probes.asking import shared_tokens
from allmem.evaluation.probes.base import Probe, count
from allmem.evaluation.probes.composing import tokens_of
from allmem.evaluation.runner import evaluate
from allmem.evaluation.task import Example, Setting
from allmem.opening import OpenedModel
from tests.data.tokenizers import small_tokenizer
from tests.evaluation.oracle import Oracle
from tests.models.tiny import base_model

ASKED = GROUPS["probes-text"]
PROSE = (
    "The river was low that summer and nobody crossed it. Somebody spoke of rain, and the old man "
    "laughed at it. In the evening the lamps were lit one after another. A dog barked. They went "
    "on along the wall, slowly, since the road was bad and the day had been long. "
)
W, S, LENGTH = 200, 24, 1600
BYTES = 3
"""Of a Chinese character, each of which may be a token."""


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return small_tokenizer()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short prose, since the novel has 60,000 tokens."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "books_en.txt").write_text(PROSE * 12)
    (folder / "books_zh.txt").write_text("老人在河边坐了很久，没有说话。后来下起了雨。" * 60)
    return folder


def ask(name: str, model: Oracle, setting: Setting) -> list[dict[str, Any]]:
    """Rows, as the runner keeps them."""
    task = TASKS[name]()
    rows = []
    for example in task.examples(setting, model):
        [answer] = task.answer(model, [example], setting)
        known = {"id": example.id, "cell": example.cell, "reference": example.reference}
        rows.append(json.loads(json.dumps({**known, **answer})))
    return rows


def scores(name: str, rows: list[dict[str, Any]], metric: str, beyond: bool) -> list[float]:
    """Of all answers whose facts are out of sight, or all others."""
    task = TASKS[name]()
    return [
        part.scores[metric]
        for row in rows
        for part, asked in zip(task.parts(row), row["reference"]["questions"], strict=True)
        if asked["beyond"] == beyond
    ]


@pytest.mark.parametrize("name", ASKED)
def test_one_that_reads_everything_answers_everything(
    name: str, tokenizer: Any, data: Path
) -> None:
    setting = Setting(data=data, lengths=(LENGTH,), limit=2)
    model = Oracle(tokenizer, W, S, blind=False)
    rows = ask(name, model, setting)
    found = scores(name, rows, TASKS[name]().metric, beyond=True)
    assert len(found) >= 2
    assert set(found) == {1.0}


CHANCE = {"probes/order": 0.5, "probes/learning": 0.25, "probes/understanding": 0.25}


@pytest.mark.parametrize("name", ASKED)
def test_one_that_sees_its_window_alone_guesses_what_is_out_of_sight(
    name: str, tokenizer: Any, data: Path
) -> None:
    setting = Setting(data=data, lengths=(LENGTH,), limit=4)
    rows = ask(name, Oracle(tokenizer, W, S), setting)
    found = scores(name, rows, TASKS[name]().metric, beyond=True)
    chance = CHANCE.get(name, 0.0)
    spread = (chance * (1 - chance) / len(found)) ** 0.5
    assert sum(found) / len(found) <= chance + 3 * spread


def test_facts_in_sight_are_marked_and_answered_by_the_window(tokenizer: Any, data: Path) -> None:
    # No place of such a text is out of sight of such a window.
    setting = Setting(data=data, lengths=(LENGTH,), limit=2)
    rows = ask("probes/passkey", Oracle(tokenizer, LENGTH, S), setting)
    assert scores("probes/passkey", rows, "exact", beyond=True) == []
    assert set(scores("probes/passkey", rows, "exact", beyond=False)) == {1.0}
    parts = [part for row in rows for part in TASKS["probes/passkey"]().parts(row)]
    assert {part.cell["beyond"] for part in parts} == {"no"}


WIDE = 800
"""A window that covers half of a text."""


def place(model: Oracle, setting: Setting, example: Example, question: Any, text: str) -> float:
    """Where in what is out of sight a text begins: 0 its first token, 1 its last."""
    prompt = example.ask.prompt(question, model, setting)
    tokens = tokens_of(model.tokenizer, prompt, setting)
    first, _ = tokens.span([text])
    begin, behind = tokens.span([example.ask.documents[0][:20]])[0], len(tokens) - model.sees
    return (first - begin) / (behind - begin)


NEAR = 0.1
"""What a sentence is of what is out of sight."""


def test_depths_are_spread_over_what_is_out_of_sight(tokenizer: Any, data: Path) -> None:
    model, setting = Oracle(tokenizer, WIDE, S), Setting(data=data, lengths=(LENGTH,), limit=2)
    for example in TASKS["probes/passkey"]().examples(setting, model):
        if example.cell["language"] == "zh":
            continue
        for question, known in zip(example.ask.questions, questions(example), strict=True):
            assert known["beyond"]
            found = place(model, setting, example, question, question.evidence[0])
            assert found == pytest.approx(question.cell["depth"], abs=NEAR)


def test_gaps_are_shares_of_what_is_out_of_sight(tokenizer: Any, data: Path) -> None:
    model, setting = Oracle(tokenizer, WIDE, S), Setting(data=data, lengths=(LENGTH,), limit=4)
    for example in TASKS["probes/order"]().examples(setting, model):
        for question in example.ask.questions:
            one, two = (place(model, setting, example, question, t) for t in question.evidence)
            assert two - one == pytest.approx(question.cell["gap"], abs=2 * NEAR)


@pytest.mark.parametrize("name", ASKED)
def test_prompts_have_the_length_that_was_asked_for(name: str, tokenizer: Any, data: Path) -> None:
    setting = Setting(data=data, lengths=(LENGTH,), limit=1)
    model = Oracle(tokenizer, W, S)
    for example in TASKS[name]().examples(setting, model):
        longest = max(len(one.prompt.ids) for one in example.ask.asked(model, setting, 0))
        low = LENGTH / 2 if name == "probes/forgetting" else 0.98 * LENGTH
        assert low <= longest <= LENGTH


def check_distances(name: str, model: Oracle, setting: Setting) -> None:
    tokenizer = model.tokenizer
    for example in TASKS[name]().examples(setting, model):
        for question, known in zip(example.ask.questions, questions(example), strict=True):
            ids = example.ask.prompt(question, model, setting).ids
            assert known["beyond"] is True
            assert known["distance"] > model.sees
            # The last tokens hold nothing of the evidence, and with one character more they do.
            behind = tokenizer.decode(ids[len(ids) - known["distance"] :])
            most = BYTES if example.cell["language"] == "zh" else 1
            with_it = {
                tokenizer.decode(ids[len(ids) - known["distance"] - more :])[:1]
                for more in range(1, most + 1)
            }
            assert not any(text in behind for text in question.evidence)
            assert with_it & {text[-1] for text in question.evidence}
            head = tokenizer.decode(ids[: model.sinks])
            assert not any(text[:4] in head for text in question.evidence)


@pytest.mark.parametrize("name", ASKED)
def test_the_distance_is_what_really_stands_behind_a_fact(
    name: str, tokenizer: Any, data: Path
) -> None:
    setting = Setting(data=data, lengths=(LENGTH,), limit=1)
    check_distances(name, Oracle(tokenizer, W, S), setting)


@pytest.mark.smollm2
def test_distances_and_lengths_hold_for_a_real_tokenizer() -> None:
    from allmem.models.sources import load_tokenizer, smollm2_file

    try:
        model = Oracle(load_tokenizer(smollm2_file()), 256, 16)
    except AllMemError as error:
        pytest.skip(str(error))
    setting = Setting(lengths=(1024,), limit=1)
    for name in ("probes/passkey", "probes/updates", "probes/order"):
        check_distances(name, model, setting)
        for example in TASKS[name]().examples(setting, model):
            longest = max(len(one.prompt.ids) for one in example.ask.asked(model, setting, 0))
            assert 0.98 * 1024 <= longest <= 1024


def questions(example: Example) -> list[dict[str, Any]]:
    return list(example.reference["questions"])


@pytest.mark.parametrize("name", ASKED)
def test_answers_stand_in_the_text_word_by_word(name: str, tokenizer: Any, data: Path) -> None:
    setting = Setting(data=data, lengths=(LENGTH,), limit=2)
    for example in TASKS[name]().examples(setting, Oracle(tokenizer)):
        for question in example.ask.questions:
            text = example.ask.documents[question.document]
            assert all(evidence in text for evidence in question.evidence)
            if question.cell.get("kind") != "count":
                assert all(answer in "".join(question.evidence) for answer in question.answers)


@pytest.mark.parametrize("name", ASKED)
def test_the_same_seed_makes_the_same_bytes(name: str, tokenizer: Any, data: Path) -> None:
    def made(seed: int) -> list[str]:
        setting = Setting(data=data, lengths=(LENGTH,), limit=1, seed=seed)
        examples = TASKS[name]().examples(setting, Oracle(tokenizer, W, S))
        return [repr(dataclasses.asdict(example)) for example in examples]

    assert made(0) == made(0)
    assert made(0) != made(1)


def test_the_last_value_is_the_right_one(tokenizer: Any, data: Path) -> None:
    setting = Setting(data=data, lengths=(LENGTH,), limit=3)
    for example in TASKS["probes/updates"]().examples(setting, Oracle(tokenizer)):
        for question in example.ask.questions:
            text = example.ask.documents[0]
            values = [*question.stale, *question.answers]
            assert len(values) == question.cell["values"]
            places = [text.index(value) for value in values]
            assert places == sorted(places)


def test_a_former_value_is_counted_apart(tokenizer: Any, data: Path) -> None:
    task = TASKS["probes/updates"]()
    for row in ask(task.name, Oracle(tokenizer), Setting(data=data, lengths=(LENGTH,), limit=1)):
        for asked, answer in zip(row["reference"]["questions"], row["answers"], strict=True):
            answer["prediction"] = (asked["stale"] or ["nothing"])[0]
        for part in task.parts(row):
            assert part.scores["exact"] == 0
            changed = part.cell["values"] > 1
            assert part.scores.get("stale") == (1.0 if changed else None)


def test_a_preference_for_a_place_or_a_name_is_worth_half(tokenizer: Any, data: Path) -> None:
    named_first: dict[Any, Counter[bool]] = defaultdict(Counter)
    setting = Setting(data=data, lengths=(LENGTH,), limit=3)
    for example in TASKS["probes/order"]().examples(setting, Oracle(tokenizer)):
        for question in example.ask.questions:
            [right], [wrong] = question.answers, question.rivals
            first = question.text.index(right) < question.text.index(wrong)
            named_first[example.id, question.cell["gap"]][first] += 1
    assert all(found[True] == found[False] for found in named_first.values())


def test_forgetting_begins_when_the_fact_has_just_left_and_counts_chunks(
    tokenizer: Any, data: Path
) -> None:
    model = Oracle(tokenizer, W, S)
    model.chunk = 100
    setting = Setting(data=data, lengths=(2600,), limit=2)
    [example] = TASKS["probes/forgetting"]().examples(setting, model)
    last = {}
    for known in questions(example):
        chunks = known["cell"]["chunks"]
        last[chunks] = min(known["distance"], last.get(chunks, 10**9))
    assert list(last) == [0, 1, 2, 4, 8, 16]
    assert 0 < last[0] - model.sees < 40
    for chunks, distance in last.items():
        assert abs(distance - last[0] - chunks * 100) <= 0.05 * chunks * 100 + 4


def test_places_of_the_question_share_their_items(tokenizer: Any, data: Path) -> None:
    setting = Setting(data=data, lengths=(LENGTH,), limit=1)
    model = Oracle(tokenizer, W, S)
    [example] = TASKS["probes/question_place"]().examples(setting, model)
    assert [q.cell["question"] for q in example.ask.questions] == ["before", "after", "both"]
    assert len({q.answers for q in example.ask.questions}) == 1
    for question in example.ask.questions:
        text = example.ask.prompt(question, model, setting).text
        assert text.count(question.text) == (2 if question.place == "both" else 1)
        ends = text.endswith(question.text)
        assert ends == (question.place != "before")


def test_facts_are_beyond_what_the_user_wants_them_to_be(tokenizer: Any, data: Path) -> None:
    setting = Setting(data=data, lengths=(LENGTH,), limit=1, beyond=700)
    for model in (Oracle(tokenizer), Oracle(tokenizer, W)):
        for example in TASKS["probes/passkey"]().examples(setting, model):
            assert all(known["distance"] > 700 for known in questions(example))


def models_of_one_run(tokenizer: Any) -> list[LocalModel]:
    """A student, the same with other sizes, and the teacher."""
    base = base_model("qwen3", vocab_size=len(tokenizer))
    student = allmem.convert(base, window=128, sinks=64, chunk=64)
    return [
        LocalModel(OpenedModel(student, tokenizer), "student"),
        LocalModel(OpenedModel(student, tokenizer, WindowConfig(64, 8), 32), "small"),
        LocalModel(PlainModel(base_model("qwen3", vocab_size=len(tokenizer)), tokenizer), "plain"),
    ]


def read(name: str, model: LocalModel, setting: Setting) -> dict[str, Any]:
    """What a model reads, by example."""
    found: dict[str, Any] = {}
    for example in TASKS[name]().examples(setting, model):
        what = example.ask
        if name in ASKED:
            found[example.id] = [one.prompt.ids for one in what.asked(model, setting, 0)]
        elif name == "probes/fact_lists":
            found[example.id] = what.ids, what.counted.tolist()
        elif name == "probes/turns":
            found[example.id] = what
        else:
            texts = what if name == "probes/audit" else [what]
            found[example.id] = [one.ids(model.tokenizer, LENGTH) for one in texts]
    return found


@pytest.mark.parametrize("name", TASKS)
def test_all_models_of_a_run_read_the_same(name: str, tokenizer: Any, data: Path) -> None:
    models = [m for m in models_of_one_run(tokenizer) if TASKS[name]().refuses(m) is None]
    setting = Setting(data=data, lengths=(LENGTH,), limit=1).for_all(models)
    first, *others = [read(name, model, setting) for model in models]
    assert first
    assert others
    assert all(other == first for other in others)


def test_the_runner_asks_all_its_models_the_same(
    tokenizer: Any, data: Path, tmp_path: Path
) -> None:
    class Recording(Oracle):
        def complete(self, prompts: Any, *rest: Any) -> Any:
            self.asked = [*getattr(self, "asked", []), *(prompt.ids for prompt in prompts)]
            return super().complete(prompts, *rest)

    models = [Recording(tokenizer, *sizes) for sizes in ((W, S), (90, 2), (0, 0))]
    for i, model in enumerate(models):
        model.label, model.chunk = f"model-{i}", (0, 150, 60)[i]
    tasks = [TASKS[name]() for name in ("probes/passkey", "probes/forgetting")]
    evaluate(models, tasks, Setting(data=data, lengths=(LENGTH,), limit=1), tmp_path)
    assert models[0].asked == models[1].asked == models[2].asked


def test_what_fits_into_no_length_is_left_out_and_the_smallest_is_an_error(
    tokenizer: Any, data: Path
) -> None:
    setting = Setting(data=data, lengths=(LENGTH,), limit=1)
    found = TASKS["probes/key_value"]().examples(setting, Oracle(tokenizer))
    pairs = {example.cell["pairs"] for example in found}
    assert 8 in pairs
    assert 128 not in pairs
    with pytest.raises(AllMemError, match="no room"):
        list(
            TASKS["probes/key_value"]().examples(
                dataclasses.replace(setting, lengths=(200,)), Oracle(tokenizer)
            )
        )


def test_quick_reads_no_more_than_it_may(tokenizer: Any, data: Path) -> None:
    setting = Setting(data=data, quick=True)
    model = Oracle(tokenizer, 48, 4)
    model.chunk = 48
    total = 0
    for name in ASKED:
        task = TASKS[name]()
        assert isinstance(task, Probe)
        # One document of each kind stands for all.
        for example in task.examples(dataclasses.replace(setting, limit=1), model):
            prompts = example.ask.asked(model, setting, 0)
            once = shared_tokens([one.prompt.ids for one in prompts])
            total += once * count(setting, task.shared)
    assert total <= 350_000


def test_a_server_without_a_tokenizer_is_refused(data: Path) -> None:
    with pytest.raises(AllMemError, match="tokenizer"):
        list(TASKS["probes/passkey"]().examples(Setting(data=data), Oracle(None)))
