"""A student's responses: batched and alone, written and read back, killed and gone on with."""

from __future__ import annotations

import copy
import dataclasses
import errno
import json
import os
import random
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from transformers import CONFIG_MAPPING, GenerationConfig

from allmem.batching import GumbelNoise
from allmem.data.chat import ChatEncoder
from allmem.data.conversation import Conversation, Message
from allmem.data.labels import IGNORED
from allmem.distill import DistillConfig
from allmem.distill.collect import Collected, collect
from allmem.distill.launch import read_rows
from allmem.distill.prompts import Prompts, read_prompts
from allmem.distill.recipe import DataSource
from allmem.distill.responder import Responder
from allmem.distill.responses import Response, response_rows
from allmem.errors import AllMemError
from allmem.models import modeling
from allmem.models.fingerprint import vocabulary
from allmem.opening import OpenedModel
from allmem.reading import Sampling, read, recommended_sampling, write
from tests.data.tokenizers import NAMES, small_tokenizer
from tests.distill.chats import QUESTIONS, make_student, write_prompts

GREEDY, DRAWN = Sampling(seed=0), Sampling(temperature=0.8, top_p=0.9, top_k=200, seed=0)
NEW = 12
BATCH = 2


@pytest.fixture(scope="module")
def student() -> OpenedModel:
    return make_student()


@pytest.fixture
def prompts(student: OpenedModel, tmp_path: Path) -> Prompts:
    return read_prompts([write_prompts(tmp_path)], student.tokenizer)


def respond(
    student: OpenedModel, prompts: Prompts, sampling: Sampling = DRAWN, batch: int = 100
) -> list[Response]:
    responder = Responder(student, prompts.end, sampling, NEW)
    ids = [prompt.ids for prompt in prompts.listed]
    found = []
    for i in range(0, len(ids), batch):
        part = ids[i : i + batch]
        found += responder(part, range(i, i + len(part)))
    return found


# Responses


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_a_batch_gives_what_each_prompt_gives_alone(
    student: OpenedModel, prompts: Prompts, sampling: Sampling
) -> None:
    together = respond(student, prompts, sampling)
    assert together == respond(student, prompts, sampling, batch=1)
    assert together == respond(student, prompts, sampling, batch=3)
    assert sampling == GREEDY or {response.finished for response in together} == {True, False}
    assert all(len(response.ids) == NEW for response in together if not response.finished)


def test_greedy_responses_are_those_of_reading_and_writing(
    student: OpenedModel, prompts: Prompts
) -> None:
    stop = Responder(student, prompts.end, GREEDY).stop
    for prompt, response in zip(prompts.listed, respond(student, prompts, GREEDY), strict=True):
        cache = student.new_cache()
        logits = read(student.model, prompt.ids, cache)
        alone = list(write(student.model, cache, logits, max_new_tokens=NEW, stop=stop))
        assert response.said == alone


def test_prompts_that_are_read_in_blocks_give_the_same(
    student: OpenedModel, prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = respond(student, prompts)
    monkeypatch.setattr(modeling, "READ_BLOCK", 8)
    assert respond(student, prompts) == whole


def test_the_window_of_the_opened_model_is_used(student: OpenedModel, prompts: Prompts) -> None:
    from allmem.config import WindowConfig

    narrow = dataclasses.replace(student, window=WindowConfig(4, 1), chunk=2)
    assert respond(narrow, prompts, GREEDY) != respond(student, prompts, GREEDY)


def test_noise_makes_the_largest_logit_a_sample() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -torch.inf, -1.0])
    rows = 4000
    generators = [torch.Generator().manual_seed(i) for i in range(rows)]
    noise = GumbelNoise(generators)
    found = noise(torch.empty(rows, 0), logits.expand(rows, -1)).argmax(-1)
    shares = torch.bincount(found, minlength=5) / rows
    # Four standard deviations.
    assert torch.allclose(shares, logits.softmax(-1), atol=4 * 0.5 / rows**0.5)
    assert shares[3] == 0


def test_another_seed_or_number_draws_another_response(
    student: OpenedModel, prompts: Prompts
) -> None:
    one = prompts.part(slice(1))
    first = respond(student, one)
    assert first == respond(student, one)
    assert first != respond(student, one, dataclasses.replace(DRAWN, seed=1))
    responder = Responder(student, prompts.end, DRAWN, NEW)
    ids = one.listed[0].ids
    assert len({tuple(r.ids) for r in responder([ids] * 5, range(5))}) == 5


@pytest.mark.parametrize("training", [True, False])
def test_the_student_is_left_as_it_was(
    student: OpenedModel, prompts: Prompts, training: bool
) -> None:
    model: Any = student.model.train(training)
    before = torch.get_rng_state(), random.getstate(), model.generation_config.to_dict()
    gradients = torch.is_grad_enabled()
    respond(student, prompts.part(slice(2)))
    assert all(module.training == training for module in model.modules())
    model.eval()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert model.generation_config.to_dict() == before[2]
    assert torch.is_grad_enabled() == gradients


def test_a_penalty_of_the_model_s_makers_does_not_come_in(
    student: OpenedModel, prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = respond(student, prompts, GREEDY)
    monkeypatch.setattr(student.model.generation_config, "repetition_penalty", 50.0)
    assert respond(student, prompts, GREEDY) == before


def test_sampling_is_the_user_s_else_the_model_s_else_plain(
    student: OpenedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert recommended_sampling(student.model) == Sampling(1.0, 1.0, 0, 0)
    for name, value in {"temperature": 0.6, "top_p": 0.95, "top_k": 20}.items():
        monkeypatch.setattr(student.model.generation_config, name, value)
    assert recommended_sampling(student.model, seed=3) == Sampling(0.6, 0.95, 20, 3)
    assert recommended_sampling(student.model, 0.0, 0.5, 0) == Sampling(0.0, 0.5, 0, 0)


@pytest.mark.parametrize("kind", ["qwen3", "qwen3_moe"])
def test_qwen3_is_sampled_as_its_card_says(kind: str) -> None:
    """By whether it thinks; its generation config has the values for thinking alone."""
    thinking, plain = Sampling(0.6, 0.95, 20, 0), Sampling(0.7, 0.8, 20, 0)
    model = SimpleNamespace(config=CONFIG_MAPPING[kind]())
    for shipped in ({}, {"temperature": 0.6, "top_p": 0.95, "top_k": 20}):
        model.generation_config = GenerationConfig(**shipped)
        assert recommended_sampling(model, thinking=True) == thinking
        assert recommended_sampling(model) == plain
        assert recommended_sampling(model, top_k=5).top_k == 5
    model.generation_config = GenerationConfig(temperature=0.3)
    assert recommended_sampling(model) == Sampling(0.3, 1.0, 0, 0), "its maker chose otherwise"


def test_a_sampling_without_seed_is_refused(student: OpenedModel) -> None:
    with pytest.raises(AllMemError, match="no seed"):
        Responder(student, 0, Sampling())


# Prompts


ROWS: dict[str, dict[str, Any]] = {
    "prompt": {"prompt": "Who said so?"},
    "prompt-messages": {"prompt": [{"role": "user", "content": "Who said so?"}]},
    "pair": {"query": "Who said so?", "response": "The man."},
    "messages": {
        "messages": [
            {"role": "user", "content": "Who said so?"},
            {"role": "assistant", "content": "<think>\nThe river?\n</think>\n\nThe man."},
        ]
    },
    "sharegpt": {
        "conversations": [
            {"from": "human", "value": "Who said so?"},
            {"from": "gpt", "value": "The man."},
        ]
    },
    "alpaca": {"instruction": "Who said so?", "input": "", "output": "The man."},
    "alpaca-unanswered": {"instruction": "Who said so?"},
}


def one_prompt(row: dict[str, Any], folder: Path, **options: Any) -> Prompts:
    path = folder / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    return read_prompts([str(path)], small_tokenizer(options.pop("name", "qwen3")), **options)


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_every_form_of_row_gives_its_question(row: dict[str, Any], tmp_path: Path) -> None:
    found = one_prompt(row, tmp_path).listed[0]
    assert found == one_prompt(ROWS["prompt"], tmp_path).listed[0]
    assert found.said == "Who said so?"


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_is_what_the_template_asks_with(name: str, thinking: bool, tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "You are helpful."},
        {"role": "user", "content": "Who said so?"},
        {"role": "assistant", "content": "The old man."},
        {"role": "user", "content": "What was true?"},
    ]
    answer = {"role": "assistant", "content": "It was."}
    found = one_prompt({"messages": [*turns, answer]}, tmp_path, name=name, thinking=thinking)
    tokenizer = small_tokenizer(name)
    expected = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, enable_thinking=thinking, return_dict=False
    )
    assert found.listed[0].ids == expected
    assert found.listed[0].said == turns
    assert tokenizer.convert_ids_to_tokens(found.end) in ("<|im_end|>", "<|eot_id|>")


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_is_what_training_data_puts_before_the_response(name: str, tmp_path: Path) -> None:
    row = {"document": "The river.", "messages": [{"role": "user", "content": "Who <|im_end|>?"}]}
    found = one_prompt(row, tmp_path, name=name).listed[0]
    turns = (Message("user", "Who <|im_end|>?"), Message("assistant", "The man."))
    pieces = ChatEncoder(small_tokenizer(name)).encode(Conversation(turns, "The river."))
    place = next(i for i, piece in enumerate(pieces) if piece.kind == "response")
    assert found.ids == [i for piece in pieces[:place] for i in piece.ids]
    assert found.said == "The river.\n\nWho <|im_end|>?"


def test_a_generation_prompt_may_say_more_than_the_history(tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>{% endif %}"
    )
    found = read_prompts([write_prompts(tmp_path, ["And?"])], tokenizer).listed[0]
    assert (
        tokenizer.decode(found.ids)
        == "<|im_start|>user\nAnd?<|im_end|><|im_start|>assistant\n<think>"
    )


def test_files_of_several_kinds_are_read_in_order(tmp_path: Path) -> None:
    table = tmp_path / "rows.parquet"
    rows = [{"messages": [{"role": "user", "content": q}]} for q in QUESTIONS[:2]]
    parquet.write_table(pa.Table.from_pylist(rows), table)
    files = [str(table), write_prompts(tmp_path, QUESTIONS[2:4])]
    found = read_prompts(files, small_tokenizer())
    assert [prompt.said for prompt in found.listed] == QUESTIONS[:4]
    assert [p.said for p in read_prompts(files, small_tokenizer(), limit=3).listed] == QUESTIONS[:3]


def test_what_is_no_prompt_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [
        {"prompt": "And?"},
        {"prompt": QUESTIONS[1]},
        {"prompt": ""},
        {"text": "The river."},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "system", "content": "Be kind."}]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_prompts([str(path)], small_tokenizer(), longest=20)
    assert [prompt.said for prompt in found.listed] == ["And?"]
    assert found.skipped == {"too_long": 1, "no_prompt": 3, "unknown_role": 1}
    with pytest.raises(AllMemError, match=r"no prompt of up to 3 tokens.*too_long 2, no_prompt 3"):
        read_prompts([str(path)], small_tokenizer(), longest=3)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{not json", "line 1 is not JSON"), ('{"a": 1}', "no known form"), ("", "skipped: nothing")],
)
def test_a_file_without_prompts_is_an_error(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(AllMemError, match=message):
        read_prompts([str(path)], small_tokenizer())


def test_a_template_that_asks_for_no_answer_is_an_error(tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
    with pytest.raises(AllMemError, match="no generation prompt"):
        read_prompts([write_prompts(tmp_path)], tokenizer)


# The file


def gather(
    student: OpenedModel, prompts: Prompts, path: Path, sampling: Sampling = DRAWN, **options: Any
) -> Collected:
    options = {"max_new_tokens": NEW, "batch": BATCH, "source": "tiny", **options}
    return collect(student, prompts, path, sampling, **options)


@pytest.fixture(scope="module")
def collected(student: OpenedModel, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("collected")
    prompts = read_prompts([write_prompts(folder)], student.tokenizer)
    gather(student, prompts, folder / "whole.jsonl")
    return (folder / "whole.jsonl").read_bytes()


@pytest.fixture
def whole(collected: bytes, tmp_path: Path) -> Path:
    """A finished file, for a test to change."""
    path = tmp_path / "whole.jsonl"
    path.write_bytes(collected)
    return path


def contents(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    header, *lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return header, lines


def test_the_file_says_whose_responses_to_what(
    student: OpenedModel, prompts: Prompts, whole: Path
) -> None:
    header, lines = contents(whole)
    assert header["model"] == student.model.fingerprint()
    assert header["tokenizer"] == vocabulary(student.tokenizer)
    assert header["prompts"]["number"] == len(lines) == len(QUESTIONS)
    assert header["sampling"]["top_p"] == DRAWN.top_p
    expected = respond(student, prompts)
    assert sorted(line["number"] for line in lines) == list(range(len(QUESTIONS)))
    for line in lines:
        response = expected[line["number"]]
        assert line["prompt"] == QUESTIONS[line["number"]]
        assert line["prompt_ids"] == prompts.listed[line["number"]].ids
        assert line["response_ids"] == response.ids
        assert line["finished"] == response.finished
        said = student.tokenizer.decode(response.said, skip_special_tokens=True)
        assert line["response"] == said
    sizes = [len(line["prompt_ids"]) for line in lines]
    assert sizes == sorted(sizes), "batches hold prompts of like length"


def test_the_report_adds_up(student: OpenedModel, prompts: Prompts, tmp_path: Path) -> None:
    reports: list[Collected] = []
    last = gather(student, prompts, tmp_path / "r.jsonl", on_batch=reports.append)
    _, lines = contents(tmp_path / "r.jsonl")
    assert [report.done for report in reports] == [2, 4, 6, 7]
    assert last.tokens == sum(len(line["response_ids"]) for line in lines)
    assert last.finished == sum(line["finished"] for line in lines)
    assert last.seconds_left == 0


class KilledError(Exception):
    pass


@pytest.mark.parametrize("batches", [1, 2, 3])
def test_a_killed_collection_goes_on_to_the_same_bytes(
    batches: int, student: OpenedModel, prompts: Prompts, whole: Path, tmp_path: Path
) -> None:
    path = tmp_path / "killed.jsonl"

    def kill(report: Collected) -> None:
        if report.done == batches * BATCH:
            raise KilledError

    with pytest.raises(KilledError):
        gather(student, prompts, path, on_batch=kill)
    assert len(contents(path)[1]) == batches * BATCH
    again: list[Collected] = []
    gather(student, prompts, path, on_batch=again.append)
    assert again[0].done == min((batches + 1) * BATCH, len(QUESTIONS))
    assert path.read_bytes() == whole.read_bytes()


def test_a_file_that_was_cut_anywhere_goes_on_to_the_same_bytes(
    student: OpenedModel, prompts: Prompts, whole: Path, tmp_path: Path
) -> None:
    path = tmp_path / "cut.jsonl"
    bytes_whole = whole.read_bytes()
    header = bytes_whole.index(b"\n") + 1
    lines = [i + 1 for i, byte in enumerate(bytes_whole) if byte == ord("\n")]
    for cut in (
        header,
        header + 1,
        lines[1],
        lines[1] + 40,
        lines[2] - 1,
        lines[-1] - 1,
        lines[-1],
    ):
        path.write_bytes(bytes_whole[:cut])
        reports: list[Collected] = []
        gather(student, prompts, path, on_batch=reports.append)
        assert path.read_bytes() == bytes_whole, cut
        # The same prompts share a batch, or they would be rounded otherwise.
        assert {report.done for report in reports} <= {2, 4, 6, 7}


def test_another_batch_goes_on_with_the_same_responses(
    student: OpenedModel, prompts: Prompts, whole: Path, tmp_path: Path
) -> None:
    path = tmp_path / "cut.jsonl"
    path.write_bytes(b"".join(whole.read_bytes().splitlines(keepends=True)[:4]))
    gather(student, prompts, path, batch=3)
    assert path.read_bytes() == whole.read_bytes()


OTHERS: dict[str, Callable[[OpenedModel, Prompts], dict[str, Any]]] = {
    "sampling.temperature = 0.8, now it is 0.5": lambda student, prompts: {
        "sampling": dataclasses.replace(DRAWN, temperature=0.5)
    },
    "sampling.seed = 0, now it is 1": lambda student, prompts: {
        "sampling": dataclasses.replace(DRAWN, seed=1)
    },
    "sampling.max_new_tokens = 12, now it is 5": lambda student, prompts: {"max_new_tokens": 5},
    "sampling.thinking = False, now it is True": lambda student, prompts: {
        "prompts": dataclasses.replace(prompts, thinking=True)
    },
    "model = ": lambda student, prompts: {"student": make_student(seed=1)},
    "dtype = 'float64', now it is 'float32'": lambda student, prompts: {
        "student": dataclasses.replace(student, model=copy.deepcopy(student.model).float())
    },
    "reading.chunk = 5, now it is 2": lambda student, prompts: {
        "student": dataclasses.replace(student, chunk=2)
    },
    "prompts.number = 7, now it is 3": lambda student, prompts: {"prompts": prompts.part(slice(3))},
    "prompts.fingerprint = ": lambda student, prompts: {
        "prompts": prompts.part(slice(None, None, -1))
    },
}


@pytest.mark.parametrize("named", OTHERS)
def test_another_collection_is_refused(
    named: str, student: OpenedModel, prompts: Prompts, whole: Path
) -> None:
    before = whole.read_bytes()
    arguments = {"student": student, "prompts": prompts, "path": whole}
    with pytest.raises(AllMemError, match=f"was begun with {named}"):
        gather(**{**arguments, **OTHERS[named](student, prompts)})
    assert whole.read_bytes() == before


def test_names_may_differ(student: OpenedModel, prompts: Prompts, whole: Path) -> None:
    before = whole.read_bytes()
    gather(student, prompts, whole, source="elsewhere", adapter="a.safetensors")
    assert whole.read_bytes() == before


def test_a_stranger_s_file_is_left_alone(
    student: OpenedModel, prompts: Prompts, tmp_path: Path
) -> None:
    for text in ("", "my notes", "my notes\n", '{"kind": "notes"}\n'):
        path = tmp_path / "notes"
        path.write_text(text)
        with pytest.raises(AllMemError, match="no file of responses"):
            gather(student, prompts, path)
        assert path.read_text() == text


def damage(path: Path, line: int, change: Callable[[str], str]) -> None:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    lines[line - 1] = change(lines[line - 1])
    path.write_text("".join(lines), encoding="utf-8")


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line[:40] + "\n",
        lambda line: line.replace('"finished"', '"done"'),
        lambda line: line.replace('"response_ids": [', '"response_ids": ["a", '),
        lambda line: "[]\n",
    ],
    ids=["torn", "no-key", "no-tokens", "no-object"],
)
def test_a_damaged_line_is_named(
    change: Callable[[str], str], student: OpenedModel, prompts: Prompts, whole: Path
) -> None:
    damage(whole, 4, change)
    with pytest.raises(AllMemError, match="line 4 is damaged"):
        gather(student, prompts, whole)
    with pytest.raises(AllMemError, match="line 4 is damaged"):
        response_rows(whole, 100, student.tokenizer)


def test_lines_in_another_order_are_refused(
    student: OpenedModel, prompts: Prompts, whole: Path
) -> None:
    lines = whole.read_text(encoding="utf-8").splitlines(keepends=True)
    whole.write_text("".join([lines[0], lines[2], lines[1], *lines[3:]]), encoding="utf-8")
    with pytest.raises(AllMemError, match="line 2 is not the response that belongs there"):
        gather(student, prompts, whole)


def test_a_full_disk_costs_one_batch(
    student: OpenedModel,
    prompts: Prompts,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "full.jsonl"

    def fill(report: Collected) -> None:
        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(AllMemError, match=r"No space left on device.*the same command goes on"):
        gather(student, prompts, path, on_batch=fill)
    monkeypatch.undo()
    gather(student, prompts, path)
    assert path.read_bytes() == whole.read_bytes()


def test_an_untrained_memory_is_told(tmp_path: Path, prompts: Prompts) -> None:
    student = make_student(random=False)
    with pytest.warns(UserWarning, match="untrained"):
        gather(student, prompts, tmp_path / "r.jsonl")


# Rows of it


@pytest.mark.filterwarnings("ignore:.*are left out")
def test_only_responses_are_learned(student: OpenedModel, whole: Path) -> None:
    rows = response_rows(whole, 64, student.tokenizer)
    _, lines = contents(whole)
    found = []
    for row in rows:
        assert len(row["input_ids"]) <= 64
        assert all(tensor.dtype == torch.int64 for tensor in row.values())
        starts = (row["position_ids"] == 0).nonzero().flatten().tolist()
        for begin, end in zip(starts, [*starts[1:], len(row["input_ids"])], strict=True):
            ids, labels = (row[key][begin:end].tolist() for key in ("input_ids", "labels"))
            assert row["position_ids"][begin:end].tolist() == list(range(end - begin))
            first = next(i for i, label in enumerate(labels) if label != IGNORED)
            assert labels[:first] == [IGNORED] * first
            assert labels[first:] == ids[first:]
            found.append((ids[:first], ids[first:]))
    expected = [
        (line["prompt_ids"], line["response_ids"])
        for line in lines
        if len(line["response_ids"]) > line["finished"]
    ]
    assert sorted(found) == sorted(expected)
    assert len(rows) < len(found), "samples share rows"


def test_long_and_empty_responses_are_counted(student: OpenedModel, whole: Path) -> None:
    def emptied(line: str) -> str:
        return json.dumps({**json.loads(line), "response_ids": [0], "finished": True}) + "\n"

    damage(whole, 2, emptied)
    _, lines = contents(whole)
    empty = sum(len(line["response_ids"]) == line["finished"] for line in lines)
    assert 0 < empty < 6
    longest = max(len(line["prompt_ids"]) + len(line["response_ids"]) for line in lines)
    told = f"of 7 responses 1 are longer than {longest - 1} tokens, {empty} are empty"
    with pytest.warns(UserWarning, match=told):
        rows = response_rows(whole, longest - 1, student.tokenizer)
    assert sum(int((row["position_ids"] == 0).sum()) for row in rows) == 6 - empty
    with pytest.raises(AllMemError, match=f"of 7 responses {7 - empty} are longer than 3 tokens"):
        response_rows(whole, 3, student.tokenizer)


@pytest.mark.filterwarnings("ignore:.*are left out")
def test_an_unfinished_file_is_told(student: OpenedModel, whole: Path) -> None:
    text = whole.read_bytes()
    whole.write_bytes(text[:-5])
    with pytest.warns(UserWarning, match="6 responses to 7 prompts"):
        response_rows(whole, 64, student.tokenizer)


@pytest.mark.filterwarnings("ignore:.*are left out")
def test_a_run_keeps_some_responses_to_be_judged_by(student: OpenedModel, whole: Path) -> None:
    everything = response_rows(whole, 64, student.tokenizer)
    source = DataSource(responses=str(whole), length=64, evaluated=1)
    rows, held_out = read_rows(source, student, DistillConfig(steps=1))
    assert len(held_out) == 1
    learned = list(islice(rows.read(0, 0, 1), len(everything) - 1))
    texts = [row["input_ids"].tolist() for row in [*learned, *held_out]]
    assert sorted(texts) == sorted(row["input_ids"].tolist() for row in everything)
    one = dataclasses.replace(source, length=10_000)
    with pytest.raises(AllMemError, match="fills one row of 10000 tokens"):
        read_rows(one, student, DistillConfig(steps=1))
    own = dataclasses.replace(one, held_out=str(whole))
    assert len(read_rows(own, student, DistillConfig(steps=1))[1]) == 1


def test_another_vocabulary_is_refused(whole: Path) -> None:
    other = small_tokenizer()
    other.add_tokens(["<more>"])
    with pytest.raises(AllMemError, match="another tokenizer"):
        response_rows(whole, 64, other)
    with pytest.raises(AllMemError, match="there is no file"):
        response_rows(whole.with_name("none"), 64, other)
