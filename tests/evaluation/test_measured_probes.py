"""The probes that look into a model: losses by position, questions by turn, the causal audit.

The model is tiny and random, all slow weights drawn, on a tokenizer that was trained on a few
lines; its texts are made so that words come back within the window and beyond it.
"""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import allmem
from allmem.errors import AllMemError
from allmem.evaluation.feeding import PlainModel
from allmem.evaluation.local import LocalModel
from allmem.evaluation.probes import audit, books, positions, turns
from allmem.evaluation.probes.intervention import intact, replaced, shuffled
from allmem.evaluation.probes.words import sorts
from allmem.evaluation.task import Example, Setting
from allmem.models.modeling import AllMemForCausalLM
from allmem.opening import OpenedModel
from tests.data.tokenizers import small_tokenizer
from tests.evaluation.benchmark_files import put
from tests.models.tiny import C, S, W, base_model, randomise_memory, without_memory

TOKENIZER = small_tokenizer("smollm2")
TEXT = "\n\n".join(
    f"The old man said that river {i} rises in the north, and what Walter said of it was true. "
    f"In the {i * 37}th year Anna asked him who named the river {i * 11}."
    for i in range(60)
)
OTHER = "\n\n".join(
    f"Nobody knows why {i} ships came to Bergen from the islands." for i in range(90)
)


def make_model(dtype: torch.dtype = torch.float64, mixers: str = "allmem") -> AllMemForCausalLM:
    base = base_model("qwen3", vocab_size=len(TOKENIZER))
    chunk = C if "allmem" in mixers else None
    model = allmem.convert(base, window=W, sinks=S, chunk=chunk, mixers=mixers)
    randomise_memory(model, 1)
    return model.to(dtype)


def local(
    model: AllMemForCausalLM | None = None, label: str = "tiny", **options: Any
) -> LocalModel:
    return LocalModel(OpenedModel(model or make_model(), TOKENIZER), label, **options)


def write_books(folder: Path, texts: dict[str, str]) -> Setting:
    """A data folder with these books, and a setting that reads 200 tokens of each."""
    (folder / "books").mkdir()
    rows = "".join(json.dumps({"id": name, "text": text}) + "\n" for name, text in texts.items())
    (folder / "books" / "test.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    return Setting(data=folder, lengths=(200,))


# Positions


def direct_sums(model: AllMemForCausalLM, ids: list[int]) -> dict[int, tuple[float, int]]:
    """By a single call, and a loop over bins."""
    slots = torch.tensor([ids])
    with torch.no_grad():
        logits = model(input_ids=slots).logits[0, :-1]
    losses = F.cross_entropy(logits, slots[0, 1:], reduction="none").tolist()
    found: dict[int, tuple[float, int]] = {}
    for place, loss in enumerate(losses, 1):
        edge = next(e for e in (64, 96, 128, 192, 256, 384) if place < e)
        total, count = found.get(edge, (0.0, 0))
        found[edge] = (total + loss, count + 1)
    return found


def test_sums_by_position_equal_a_direct_computation() -> None:
    model = make_model()
    ids = TOKENIZER(TEXT)["input_ids"][:300]
    expected = direct_sums(model, ids)
    found = positions.sums_by_position(local(model).session(), ids)
    assert [edge for edge, _, _ in found] == list(expected)
    for edge, total, count in found:
        assert count == expected[edge][1]
        # A session tells losses in fp32.
        assert total == pytest.approx(expected[edge][0], rel=1e-6)


@pytest.mark.parametrize("block", [1, 7, 64, 128])
def test_sums_by_position_do_not_depend_on_how_the_text_is_split(block: int) -> None:
    tested = local()
    ids = TOKENIZER(TEXT)["input_ids"][:130]
    whole = positions.sums_by_position(tested.session(), ids, block=1000)
    split = positions.sums_by_position(tested.session(), ids, block=block)
    for (edge, total, count), (other_edge, other_total, other_count) in zip(
        whole, split, strict=True
    ):
        assert (edge, count) == (other_edge, other_count)
        assert total == pytest.approx(other_total, rel=1e-6)


def test_bins_go_on_as_far_as_the_text_and_hold_every_power_of_two() -> None:
    edges = positions.bin_edges(1_000_000)
    assert edges == sorted(edges)
    assert edges[-2] < 1_000_000 <= edges[-1]
    assert {2**k for k in range(6, 20)} <= set(edges)
    assert len(edges) < 40


def test_positions_reads_books_of_a_folder_as_far_as_they_go(tmp_path: Path) -> None:
    setting = write_books(tmp_path, {"long": TEXT, "short": "Who said so? The old man said so."})
    task, tested = positions.Positions(), local()
    tested.reach = 96
    examples = list(task.examples(setting, tested))
    rows = task.answer(tested, examples, setting)
    assert rows[0]["prompt_tokens"] == 200
    assert 2 < rows[1]["prompt_tokens"] < 200
    parts = task.parts({**rows[0], "cell": {}, "reference": {}})
    assert sum(part.weight for part in parts) == 199
    # A window's positions end where it does: only full attention meets what it never saw.
    assert not any("beyond_reach" in part.cell for part in parts)
    tested.sees = 0
    parts = task.parts(task.answer(tested, examples[:1], setting)[0])
    marked = {part.cell["position"]: "beyond_reach" in part.cell for part in parts}
    assert marked == {64: False, 96: False, 128: True, 192: True, 256: True}


def test_a_row_without_a_text_is_an_error_or_left_out(tmp_path: Path) -> None:
    setting = write_books(tmp_path, {"good": TEXT, "empty": " "})
    with pytest.raises(AllMemError, match=r"test.jsonl.gz, line 2 has no text"):
        list(books.stretches(setting, 100))
    skipping = dataclasses.replace(setting, skip_bad_rows=True)
    with pytest.warns(UserWarning, match="line 2"):
        assert [one.id for one in books.stretches(skipping, 100)] == ["good"]


def test_books_may_be_rows_of_one_file(tmp_path: Path) -> None:
    put(
        tmp_path / "books_en.jsonl.xz", [json.dumps({"text": "One."}), json.dumps({"text": "Two."})]
    )
    found = list(books.stretches(Setting(data=tmp_path), 100))
    assert [(one.id, one.text) for one in found] == [("1", "One."), ("2", "Two.")]


def test_the_novel_that_ships_is_cut_into_stretches_that_do_not_overlap() -> None:
    found = list(books.stretches(Setting(), 4096))
    assert len(found) == 4
    assert len({one.id for one in found}) == 4
    for one, following in itertools.pairwise(found):
        assert following.text[:200] not in one.text[: 4096 * books.TYPICAL]


# Sorts of tokens


def test_words_are_told_apart_by_kind_and_by_where_they_stood_before() -> None:
    text = "Anna met 17 wolves. The wolves fled, and Dr. Anna counted 17 wolves; THE END of wolves"
    words = text.split()
    spans, at = [], 0
    for word in words:
        begin = text.index(word, at)
        at = begin + len(word)
        # As tokenizers do it: the space belongs to the word behind it.
        spans.append((max(0, begin - 1), at))
    found = dict(zip(range(len(words)), sorts(text, spans, window=5, sinks=1), strict=True))
    assert [found[i] for i in (1, 2, 3)] == [("word", "new"), ("number", "new"), ("word", "new")]
    # "Anna" begins the text, "The" a sentence; "the" is a function word in any case.
    assert found[0] == ("word", "new")
    assert found[4] == ("filler", None)
    assert words[5] == "wolves"
    assert found[5] == ("word", "recent")
    # Six tokens back, but one of the sinks, which are always seen.
    assert words[9] == "Anna"
    assert found[9] == ("name", "recent")
    assert words[11] == "17"
    assert found[11] == ("number", "recalled")
    assert words[12] == "wolves;"
    assert found[12] == ("word", "recalled")
    assert found[14] == ("word", "new")
    # Five tokens back is the last that a window of five shows.
    assert words[16] == "wolves"
    assert found[16] == ("word", "recent")


def test_a_word_of_several_tokens_is_one_sort() -> None:
    text = "a Bergenhus and the Bergenhus"
    spans = [(0, 1), (1, 5), (5, 11), (11, 15), (15, 19), (19, 23), (23, 29)]
    found = sorts(text, spans, window=2, sinks=0)
    assert found[1] == found[2] == ("name", "new")
    assert found[5] == found[6] == ("name", "recalled")


# The audit


def session_at(tested: LocalModel, text: str = TEXT, tokens: int = 12 * C) -> Any:
    session = tested.session()
    session.read(TOKENIZER(text)["input_ids"][:tokens])
    return session


def losses_with(session: Any, cache: Any, count: int = 40) -> torch.Tensor:
    reader = session.fork()
    reader.cache = cache
    ids = TOKENIZER(TEXT)["input_ids"][12 * C : 12 * C + count]
    return reader.losses(ids)


def test_a_memory_that_is_put_in_again_changes_nothing() -> None:
    tested = local()
    session = session_at(tested)
    plain = losses_with(session, session.cache.fork())
    assert torch.equal(losses_with(session, intact(session.cache)), plain)
    assert torch.equal(losses_with(session, replaced(session.cache, session.cache.states)), plain)
    again = session_at(tested)
    assert torch.equal(losses_with(session, replaced(session.cache, again.cache.states)), plain)


def test_exchanging_memories_leaves_the_session_as_it_was() -> None:
    session = session_at(local())
    before = {name: tensor.clone() for name, tensor in session.cache.tensors().items()}
    losses_with(session, shuffled(session.cache, 0))
    losses_with(session, replaced(session.cache, session.cache.states))
    for name, tensor in session.cache.tensors().items():
        assert torch.equal(tensor, before[name]), name


def test_only_the_memory_is_exchanged() -> None:
    tested = local()
    session = session_at(tested)
    stranger = session_at(tested, OTHER)
    changed = replaced(session.cache, stranger.cache.states)
    own, other = session.cache.tensors(), stranger.cache.tensors()
    for name, tensor in changed.tensors().items():
        taken = ".memory.memory.weights" in name or ".memory.memory.momentum" in name
        assert torch.equal(tensor, (other if taken else own)[name]), name
    assert int(changed.seen) == 12 * C


def test_within_a_chunk_what_was_summed_up_begins_anew() -> None:
    session = session_at(local(), tokens=12 * C + 2)
    open_sums = [name for name in session.cache.tensors() if name.endswith(".beta")]
    open_sums += [name for name in session.cache.tensors() if ".gradient." in name]
    assert all(bool(session.cache.tensors()[name].any()) for name in open_sums)
    for changed in (intact(session.cache), shuffled(session.cache, 0)):
        assert not any(bool(changed.tensors()[name].any()) for name in open_sums)
    # At the border of a chunk there is nothing to lose.
    closed = session_at(local()).cache.tensors()
    assert not any(bool(closed[name].any()) for name in open_sums)


def test_a_memory_in_disorder_keeps_its_norms() -> None:
    session = session_at(local())
    before, after = session.cache.tensors(), shuffled(session.cache, 3).tensors()
    again, other = shuffled(session.cache, 3).tensors(), shuffled(session.cache, 4).tensors()
    moved = 0
    for name, tensor in before.items():
        if ".weights." in name or ".momentum." in name:
            rows, kept = (x[name].norm(dim=-1).sort(-1).values for x in (before, after))
            assert torch.equal(rows, kept), name
            moved += not torch.equal(after[name], tensor)
            assert torch.equal(after[name], again[name])
            assert not torch.equal(after[name], other[name])
        else:
            assert torch.equal(after[name], tensor), name
    assert moved == 12


def run_audit(model: AllMemForCausalLM, folder: Path, **options: Any) -> list[dict[str, Any]]:
    setting = write_books(folder, {"text": TEXT, "other": OTHER})
    task, tested = audit.Audit(), local(model, **options)
    examples = list(task.examples(setting, tested))
    rows = task.answer(tested, examples, setting)
    return [
        {**row, "cell": dict(example.cell)} for example, row in zip(examples, rows, strict=True)
    ]


def test_the_audit_of_a_random_memory_finds_differences_and_counts_every_token(
    tmp_path: Path,
) -> None:
    rows = run_audit(make_model(), tmp_path)
    for row in rows:
        parts = audit.Audit().parts(row)
        # Without the first token after the place, which was predicted before it.
        assert sum(part.weight for part in parts) == 200 - row["place"] - 1
        assert row["place"] % C == 0
        for variant in audit.VARIANTS:
            assert any(abs(part.scores[variant]) > 1e-4 for part in parts)
        assert {part.cell["windows"] for part in parts} == {1, 2, 3}
        assert {part.cell["kind"] for part in parts} >= {"word", "number", "filler"}
        assert all(("seen" in part.cell) == (part.cell["kind"] != "filler") for part in parts)


def test_the_audit_of_a_silent_memory_finds_exactly_nothing(tmp_path: Path) -> None:
    for row in run_audit(without_memory(make_model()), tmp_path):
        for part in audit.Audit().parts(row):
            assert [part.scores[variant] for variant in audit.VARIANTS] == [0.0, 0.0, 0.0]


def test_the_audit_of_a_memory_that_is_never_written_finds_nothing_to_reset(
    tmp_path: Path,
) -> None:
    for row in run_audit(make_model(), tmp_path, reader="unwritten"):
        for part in audit.Audit().parts(row):
            assert part.scores["reset"] == part.scores["swapped"] == 0.0
        assert any(part.scores["shuffled"] for part in audit.Audit().parts(row))


def test_the_audit_swaps_with_another_book(tmp_path: Path) -> None:
    one = write_books(tmp_path, {"text": TEXT})
    ask = [example.ask for example in audit.Audit().examples(one, local())]
    assert [(text.book, other.book) for text, other in ask] == [("text", books.LEARNED)]
    limited = Setting(lengths=(200,), limit=2)
    asked = [example.ask for example in audit.Audit().examples(limited, local())]
    assert [(text.book, other.book) for text, other in asked] == [(books.READ, books.LEARNED)] * 2


def test_the_audit_refuses_models_without_memories() -> None:
    plain = LocalModel(PlainModel(base_model("qwen3", vocab_size=len(TOKENIZER)), TOKENIZER), "t")
    for tested, why in (
        (plain, "only a converted model"),
        (local(make_model(mixers="window")), "layers window"),
        (local(reader="window"), "reader window"),
    ):
        assert why in (audit.Audit().refuses(tested) or "")
    assert audit.Audit().refuses(local()) is None
    with pytest.raises(AllMemError, match=r"at least \d+ tokens"):
        list(audit.Audit().examples(Setting(lengths=(6,)), local()))


# Turns


class Counting(LocalModel):
    """Counts tokens that are read, by all sessions together."""

    read = 0

    def session(self) -> Any:
        session: Any = super().session()
        feed, model = session._feed, self
        plain = type(feed)._call

        def call(self: Any, ids: torch.Tensor, *rest: Any) -> torch.Tensor:
            model.read += ids.numel()
            return plain(self, ids, *rest)

        feed.__class__ = type("Counted", (type(feed),), {"_call": call})
        return session


@pytest.mark.parametrize("language", ["en", "zh"])
def test_turns_go_on_from_one_state_that_is_read_once(
    language: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "TURNS", 3)
    monkeypatch.setattr(turns, "NEW_TOKENS", 4)
    tested = Counting(OpenedModel(make_model(torch.float32), TOKENIZER), "tiny")
    task, setting = turns.Turns(), Setting(lengths=(600,), limit=1)
    asked = [e for e in task.examples(setting, tested) if e.cell["language"] == language]
    example: Example = asked[0]
    (row,) = task.answer(tested, [example], setting)
    document = row["prompt_tokens"]
    assert document >= 550
    assert row["distance"] > tested.sees
    # The document once; questions and answers are a fraction of what reading it again would be.
    assert row["read"] > document
    assert tested.read - document < turns.TURNS * document / 2
    parts = task.parts({**row, "reference": example.reference, "cell": example.cell})
    assert [part.cell["turn"] for part in parts] == list(range(1, turns.TURNS + 1))
    assert parts[0].scores["worn_nll"] == 0.0
    # A later question meets another state than the copies have.
    assert all(part.scores["worn_nll"] != 0.0 for part in parts[1:])


def test_a_document_holds_each_fact_once_in_its_first_half() -> None:
    tested = local()
    for example in turns.Turns().examples(Setting(lengths=(1500,), limit=1), tested):
        made: turns.Document = example.ask
        for fact in made.facts:
            assert made.text.count(fact.stated[0]) == 1
            assert made.text.count(fact.values[0]) == 1
        assert len(set(example.reference["values"])) == turns.TURNS
        assert 0.45 * 1500 < made.distance < 0.55 * 1500
        assert made.first > S


def test_a_document_within_sight_is_refused() -> None:
    with pytest.raises(AllMemError, match="out of the sight of 900 tokens"):
        list(turns.Turns().examples(Setting(lengths=(1500,), limit=1, beyond=900), local()))


def test_every_probe_is_listed_under_its_name() -> None:
    for module in (positions, turns, audit):
        for name, make in module.TASKS.items():
            assert make().name == name
