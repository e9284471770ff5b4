"""The demo, on a tiny random model and tiny texts: every step, and what an interruption leaves."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from allmem.cli.demo import present
from allmem.demo import Demo, DemoSettings, Question, crossover, load_questions
from allmem.demo.books import is_right
from allmem.demo.examiner import ORIGINAL
from allmem.demo.report import sampled
from allmem.demo.steps import Point
from allmem.documents import LEARNED, READ, load_book
from allmem.models.adapter import save_adapter
from allmem.models.conversion import convert

TEXT = "The maid wore an iron ring, and Walter sailed over the grey sea to the well. " * 12
SETTINGS = DemoSettings(
    shipped_window=None,
    documents=2,
    facts=2,
    passage=120,
    window=16,
    sinks=2,
    chunk=8,
    layers=(1,),
    memory={},
    length=48,
    evaluated=2,
    full_tokens=240,
    block=64,
    answer_tokens=4,
)


def make_base() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=260,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=256,
        eos_token_id=257,
    )
    return LlamaForCausalLM(config).eval()


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is a token."""
    letters = {letter: i for i, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    raw = Tokenizer(models.BPE(vocab=letters, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Memories drawn at random."""
    model = convert(make_base(), window=16, sinks=2, chunk=8, mixers="window,allmem")
    with torch.no_grad():
        for name, parameter in model.memory_parameters().items():
            scale = 2.0 if name.endswith("alpha") else 0.1
            parameter.add_(scale * torch.randn_like(parameter))
    path = tmp_path_factory.mktemp("shipped") / "adapter.safetensors"
    save_adapter(model, path, {"tokens": 1234})
    return path


def make_demo(adapter: Path | None, minutes: float | None = None) -> Demo:
    questions = [
        Question("What did the maid wear?", "an iron ring", 0),
        Question("Where did he sail?", "to the well", 700),
    ]
    settings = dataclasses.replace(SETTINGS, minutes=minutes)
    return Demo(make_base, make_tokenizer(), TEXT, TEXT[20:], questions, settings, adapter)


@pytest.fixture
def demo(adapter: Path) -> Demo:
    return make_demo(adapter)


def test_every_step_is_taken_and_told(
    demo: Demo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    present(demo, str(tmp_path / "out"), "a tiny model")
    told = capsys.readouterr().out
    for part in ("trained on 1,234 tokens", "of 4 right: window and memory", "right: an iron ring"):
        assert part in told
    assert (tmp_path / "out" / "demo.png").read_bytes().startswith(b"\x89PNG")
    figures = json.loads((tmp_path / "out" / "demo.json").read_text())
    lines = figures["readings"]
    assert lines["AllMem"][-1]["position"] > SETTINGS.full_tokens
    assert lines["full attention"][-1]["position"] == SETTINGS.full_tokens
    assert len({point["state_bytes"] for point in lines["AllMem"]}) == 1
    # Only what full attention has read the answer to is asked of it.
    assert len(figures["answers"]["AllMem"]) == 2
    assert len(figures["answers"]["full attention"]) == 1
    for kind, count in (("hidden facts", 4), ("passages", 2)):
        assert len(figures[kind]) == count
        assert all(len(one["said"]) == 4 for one in figures[kind])
    assert figures["memory"]["tokens"] == 1234
    assert figures["memory"]["layers"] == 1


def test_a_memory_is_distilled_instead_if_wanted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    present(make_demo(None, minutes=0.01), str(tmp_path / "out"), "a tiny model")
    told = capsys.readouterr().out
    for part in ("window model 0,", "KL to the teacher", "of 4 right: window and memory"):
        assert part in told
    figures = json.loads((tmp_path / "out" / "demo.json").read_text())
    assert figures["distillation"]["tokens"] > 0


def test_readers_differ_where_they_should(demo: Demo) -> None:
    opened = demo.open_shipped()
    assert opened.added == sum(p.numel() for p in demo.model.memory_parameters().values())
    examiner = demo.examiner()
    found = examiner.hidden_facts()
    again = examiner.hidden_facts()
    assert [one.said for one in again] == [one.said for one in found]
    # Facts stand in the documents that were read, out of the window's sight.
    said = [[one.said[reader] for one in found] for reader in found[0].said]
    assert all(said[i] != said[j] for i in range(4) for j in range(i))
    for one in found:
        assert one.right(ORIGINAL) == is_right(one.said[ORIGINAL], one.answer)


def test_a_passage_holds_its_answer() -> None:
    book = load_book(READ)
    for question in load_questions():
        passage = question.passage(book, SETTINGS.passage * 5)
        assert is_right(passage, question.answer)
        assert len(passage) <= SETTINGS.passage * 5
        assert f" {passage} " in f" {book} "


def test_an_untrained_conversion_is_the_window_model() -> None:
    demo = make_demo(None, minutes=0.01)
    converted = demo.convert()
    assert converted.step_zero == 0
    assert converted.within_window < 1e-5
    assert converted.added > 0


def test_full_attention_answers_like_one_reading_of_everything(demo: Demo) -> None:
    demo.read_original()
    question = demo.prompt.question("What did the maid wear?")
    base = make_base()
    prompt = torch.tensor([[*demo.original.ids, *question]])
    expected = base.generate(prompt, max_new_tokens=4, do_sample=False)[0, prompt.shape[1] :]
    text = demo.tokenizer.decode(expected, skip_special_tokens=True).strip()
    for _ in range(2):
        # Twice: a question leaves nothing behind.
        assert demo.original.answer(demo.tokenizer, question, 4) == text


def test_an_interruption_leaves_no_files(
    demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("allmem.demo.report._plot", interrupt)
    with pytest.raises(KeyboardInterrupt):
        present(demo, str(tmp_path / "out"), "a tiny model")
    left = [p.name for p in (tmp_path / "out").iterdir()]
    assert left == ["demo.json"]
    json.loads((tmp_path / "out" / "demo.json").read_text())


@pytest.mark.parametrize(
    ("said", "right", "judged"),
    [
        ("She wore an Iron Ring.", "an iron ring", True),
        ("iron", "an iron ring", False),
        ("It was twenty yards wide", "some twenty yards", True),
        ("", "Otto", False),
        ("Ottoman", "Otto", False),
    ],
)
def test_an_answer_is_right_if_it_says_all_words(said: str, right: str, judged: bool) -> None:
    assert is_right(said, right) is judged


def test_the_shipped_questions_are_about_the_shipped_book() -> None:
    book = load_book(READ)
    assert len(load_book(LEARNED)) > 300_000
    for question in load_questions():
        passage = book[question.offset : question.offset + 200].lower()
        assert question.answer.split()[-1].lower() in passage


def test_the_crossover_is_where_the_lines_meet() -> None:
    full = [Point(100, 0.1, 1000), Point(200, 0.1, 2000)]
    constant = [Point(100, 0.1, 5000), Point(200, 0.1, 5000)]
    assert crossover({"full attention": full, "AllMem": constant}) == 500


def test_lengths_in_the_table_double() -> None:
    points = [Point(64 * i, 0.0, 0) for i in range(1, 65)]
    assert [p.position for p in sampled(points, 4)] == [512, 1024, 2048, 4096]
