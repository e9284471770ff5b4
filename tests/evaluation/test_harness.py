"""lm-eval's tasks with our models: the same requests, answers and scores as lm-eval itself."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from allmem.errors import AllMemError
from allmem.evaluation.feeding import PlainModel
from allmem.evaluation.harness import forms
from allmem.evaluation.harness.encoding import encode_pair, shortened_text, without_beginning
from allmem.evaluation.harness.files import Files, read_files
from allmem.evaluation.harness.lmeval import draws, load_task
from allmem.evaluation.local import LocalModel
from allmem.evaluation.model import Prompt
from allmem.evaluation.suites.short import TASKS
from allmem.evaluation.task import Row, Setting
from allmem.evaluation.thinking import after_thinking
from allmem.reading import Sampling
from tests.data.tokenizers import small_tokenizer
from tests.evaluation.answering import Recorder
from tests.evaluation.short_rows import ROWS, write_rows

lm_eval = pytest.importorskip("lm_eval")
REACH = 1024
NEW = 32


@lru_cache
def tiny(tokenizer: str = "qwen3") -> tuple[LlamaForCausalLM, Any]:
    """In float64: no near ties."""
    words = small_tokenizer(tokenizer)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=REACH,
        initializer_range=0.3,
        eos_token_id=words.eos_token_id,
    )
    return LlamaForCausalLM(config).to(torch.float64).eval(), words


@lru_cache
def twin() -> Any:
    """The same model as lm-eval runs it."""
    from lm_eval.models.huggingface import HFLM

    model, words = tiny()
    return HFLM(pretrained=model, tokenizer=words, batch_size=1, max_length=REACH)


def ours() -> LocalModel:
    return LocalModel(PlainModel(*tiny()), "tiny")


def asked(name: str, setting: Setting, batch: int = 3) -> list[Row]:
    """Rows as a run stores them, in the order of the data."""
    task, model = TASKS[name](), ours()
    examples = list(task.examples(setting, model))
    rows: dict[str, Row] = {}
    for part in task.group(examples, batch):
        for example, answer in zip(part, task.answer(model, part, setting), strict=True):
            row = {"id": example.id, "reference": example.reference, "cell": example.cell, **answer}
            rows[example.id] = json.loads(json.dumps(row))
    return [rows[example.id] for example in examples]


def their_samples(
    folder: str, task: str, splits: dict[str, list[Row]], cached: Path, **options: Any
) -> list[dict[str, Any]]:
    """What lm-eval gives for a task's documents, with nothing of ours in between."""
    from datasets import Dataset, load_from_disk
    from lm_eval.tasks import TaskManager

    for split, rows in splits.items():
        Dataset.from_list(rows).save_to_disk(cached / split)
    # From the disk: only then does lm-eval see GPQA's choices in the same order twice.
    stored = {split: load_from_disk(cached / split) for split in splits}
    manager = TaskManager(
        include_path=str(Path(lm_eval.__file__).parent / "tasks" / folder), include_defaults=False
    )
    shots = options.pop("num_fewshot", None)
    change = {"task": task, "custom_dataset": lambda **_: stored, "dataset_kwargs": None}
    if shots is not None:
        change["num_fewshot"] = shots
    found = lm_eval.simple_evaluate(
        model=twin(),
        tasks=[{"group": "own", "task": [change]}],
        task_manager=manager,
        bootstrap_iters=0,
        **options,
    )
    return found["samples"][task]


CASES: dict[str, tuple[str, str, Callable[[], dict[str, list[Row]]], dict[str, Any]]] = {
    "arc_easy": ("arc", "arc_easy", lambda: _as("arc", "arc_easy_test.jsonl", "test", "train"), {}),
    "hellaswag": (
        "hellaswag",
        "hellaswag",
        lambda: _as("hellaswag", "hellaswag_val.jsonl", "validation", "train"),
        {},
    ),
    "winogrande": (
        "winogrande",
        "winogrande",
        lambda: _as("winogrande", "winogrande_val.jsonl", "validation", "train"),
        {},
    ),
    "ceval": (
        "ceval",
        "ceval-valid_law",
        lambda: _as("ceval", "ceval_val.jsonl", "val") | _as("ceval", "ceval_dev.jsonl", "dev"),
        {"num_fewshot": 5},
    ),
    "gpqa_diamond": (
        "gpqa/zeroshot",
        "gpqa_diamond_zeroshot",
        lambda: _as("gpqa", "gpqa_diamond.jsonl", "train"),
        {},
    ),
    "math500_plain": (
        "hendrycks_math",
        "hendrycks_math500",
        lambda: _as("math500", "math500_test.jsonl", "test"),
        {"gen_kwargs": f"max_gen_toks={NEW}"},
    ),
    "math500": (
        "minerva_math",
        "minerva_math500",
        lambda: _as("math500", "math500_test.jsonl", "test"),
        {"gen_kwargs": f"max_gen_toks={NEW}"},
    ),
}


def _as(form: str, file: str, *splits: str) -> dict[str, list[Row]]:
    rows = [getattr(forms, form)(row) for row in ROWS[file]]
    return dict.fromkeys(splits, rows)


@pytest.mark.parametrize("name", CASES)
def test_every_document_scores_as_in_lm_eval(name: str, tmp_path: Path) -> None:
    folder, theirs, splits, options = CASES[name]
    samples = their_samples(folder, theirs, splits(), tmp_path, **options)
    task = TASKS[f"short/{name}"]()
    setting = Setting(data=write_rows(tmp_path), max_new_tokens=NEW)
    rows = asked(f"short/{name}", setting)
    assert len(rows) == len(samples)
    for row, sample in zip(rows, samples, strict=True):
        (part,) = task.parts(row)
        assert part.scores == {metric: float(sample[metric]) for metric in sample["metrics"]}
        if "answers" in row:
            found, expected = (
                torch.tensor([list(map(float, answer)) for answer in answers], dtype=torch.float64)
                for answers in (row["answers"], [of_one[0] for of_one in sample["resps"]])
            )
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
        else:
            assert row["prediction"] == sample["resps"][0][0]


def test_a_conversation_is_asked_as_lm_eval_asks_it(tmp_path: Path) -> None:
    """The paper's protocol: the chat template, with the description as the system's words."""
    documents = [forms.mmlu_redux(row) for row in ROWS["mmlu_redux.jsonl"][:1]]
    (sample,) = their_samples(
        "mmlu-redux/generative",
        "mmlu_redux_virology_generative",
        {"test": [d for d in documents if d is not None]},
        tmp_path,
        apply_chat_template=True,
        gen_kwargs=f"max_gen_toks={NEW}",
        fewshot_as_multiturn=True,
    )
    data = write_rows(tmp_path)
    # lm-eval says nothing about thinking, which this template takes for leave to think.
    setting = Setting(data=data, protocol="paper", thinking=True, max_new_tokens=NEW)
    rows = asked("short/mmlu_redux", setting)
    (row,) = [row for row in rows if row["cell"] == {"subject": "virology"}]
    assert row["prompt_tokens"] == len(twin().tok_encode(sample["arguments"][0][0]))
    assert row["prediction"] == sample["resps"][0][0]


def test_a_stored_answer_is_scored_without_model_or_data(tmp_path: Path) -> None:
    rows = asked("short/arc_easy", Setting(data=write_rows(tmp_path)))
    fresh = TASKS["short/arc_easy"]()
    best = [max(range(len(row["answers"])), key=lambda i: row["answers"][i][0]) for row in rows]
    gold = [row["answer"] for row in ROWS["arc_easy_test.jsonl"]]
    scores = [fresh.parts(row)[0].scores["acc"] for row in rows]
    assert scores == [float(found == right) for found, right in zip(best, gold, strict=True)]


def test_batches_are_of_like_length(tmp_path: Path) -> None:
    task = TASKS["short/arc_easy"]()
    examples = list(task.examples(Setting(data=write_rows(tmp_path)), ours()))
    order = [example for part in task.group(examples, 2) for example in part]
    lengths = [len(example.ask[0][1]) for example in order]
    assert sorted(example.id for example in order) == list("0123")
    assert lengths == sorted(lengths, reverse=True)


def test_gpqa_is_sampled_ten_times_under_the_papers_protocol(tmp_path: Path) -> None:
    setting = Setting(
        data=write_rows(tmp_path), protocol="paper", sampling=Sampling(0.6), limit=2, seed=3
    )
    task, model = TASKS["short/gpqa_diamond"](), Recorder(small_tokenizer(), "I say (B). Yes.")
    examples = list(task.examples(setting, model))
    assert [e.id for e in examples[:11]] == [*(f"0#{n}" for n in range(10)), "1#0"]
    rows = task.answer(model, examples, setting)
    assert len(set(model.numbers)) == 20
    assert [row["sample"] for row in rows] == list(range(10)) * 2
    right = [e.reference["document"]["answer"] == "(B)" for e in examples]
    scores = [
        task.parts({"id": e.id, "reference": e.reference, "cell": e.cell, **row})[0].scores
        for e, row in zip(examples, rows, strict=True)
    ]
    assert [s["acc"] for s in scores] == list(map(float, right))
    greedy = list(task.examples(Setting(data=tmp_path, protocol="paper"), model))
    assert len(greedy) == 6, "a greedy answer is asked for once"


def test_a_thought_does_not_count_and_does_not_end_the_answer(tmp_path: Path) -> None:
    said = "<think>Problem: is it $3$?</think>\n\n$2$ Problem: the next"
    setting = Setting(data=write_rows(tmp_path), protocol="paper", thinking=True, limit=1)
    task, model = TASKS["short/math500_plain"](), Recorder(small_tokenizer(), said)
    (row,) = task.answer(model, list(task.examples(setting, model)), setting)
    assert row["prediction"] == "$2$ "
    assert model.asked[0].stop == ()
    assert after_thinking("no thought") == "no thought"


def test_a_server_gets_messages_and_no_likelihoods(tmp_path: Path) -> None:
    server = Recorder(None, "A")
    setting = Setting(data=write_rows(tmp_path), protocol="paper", limit=1)
    task = TASKS["short/mmlu_redux"]()
    task.answer(server, list(task.examples(setting, server))[:1], setting)
    assert server.asked[0].ids is None
    assert [m["role"] for m in server.asked[0].messages or []] == ["system", "user"]
    with pytest.raises(AllMemError, match=r"short/arc_easy.*loaded here; recorder only answers"):
        list(TASKS["short/arc_easy"]().examples(setting, server))


def test_prompts_lose_their_beginning_as_in_lm_eval(tmp_path: Path) -> None:
    setting = Setting(data=write_rows(tmp_path), limit=1, max_new_tokens=20)
    task, model = TASKS["short/math500_plain"](), Recorder(small_tokenizer(), "", reach=25)
    (row,) = task.answer(model, list(task.examples(setting, model)), setting)
    whole = small_tokenizer()("Problem: What is $1+1$?\nAnswer:")["input_ids"]
    assert model.asked[0].ids == whole[-5:]
    assert row["cut"] == len(whole) - 5
    with pytest.raises(AllMemError, match="--max-new-tokens"):
        without_beginning([5], 0)


def _asked_once(
    name: str, setting: Setting, reach: int | None, *, bounded: bool = False
) -> tuple[Prompt, Row]:
    """What a model of such a reach is asked first, and the row of it."""
    task, model = TASKS[name](), Recorder(small_tokenizer(), "", reach)
    model.bounded = bounded
    (row,) = task.answer(model, list(task.examples(setting, model))[:1], setting)
    return model.asked[0], row


@pytest.mark.parametrize("name", ["gpqa_diamond", "mmlu_redux", "math500_plain", "ifeval"])
def test_the_paper_lets_a_model_answer_as_long_as_its_reach_allows(
    name: str, tmp_path: Path
) -> None:
    paper = Setting(data=write_rows(tmp_path), protocol="paper", limit=1)
    whole, _ = _asked_once(f"short/{name}", paper, None)
    assert whole.max_new_tokens == 32_768
    length = len(whole.ids or ())
    for reach, new in ((40_960, 32_768), (10_000, 10_000 - length)):
        prompt, row = _asked_once(f"short/{name}", paper, reach)
        assert (prompt.max_new_tokens, row["cut"]) == (new, 0)
    own = {"ifeval": 1280}.get(name, 256)
    prompt, row = _asked_once(f"short/{name}", paper, own + length - 2)
    assert (prompt.max_new_tokens, row["cut"]) == (own, 2), "never shorter than the task's own"
    chosen = dataclasses.replace(paper, max_new_tokens=7)
    assert _asked_once(f"short/{name}", chosen, 10_000)[0].max_new_tokens == 7


@pytest.mark.parametrize("protocol", ["official", "paper"])
def test_a_server_gets_the_text_that_was_cut(protocol: Any, tmp_path: Path) -> None:
    setting = Setting(data=write_rows(tmp_path), protocol=protocol, limit=1, max_new_tokens=20)
    whole, _ = _asked_once("short/math500_plain", setting, None)
    assert (whole.messages is None) == (protocol == "official")
    prompt, row = _asked_once("short/math500_plain", setting, 30, bounded=True)
    assert row["cut"] == len(whole.ids or ()) - 10
    assert prompt.messages is None
    assert 0 < len(small_tokenizer()(prompt.text)["input_ids"]) <= 10
    assert small_tokenizer().decode(whole.ids or []).endswith(prompt.text)


def test_half_a_character_takes_no_more_tokens_than_were_left() -> None:
    tokenizer = small_tokenizer()
    ids = tokenizer("北方的河流，每年春天都会涨水。" * 3)["input_ids"]
    for first in range(12):
        text = shortened_text(tokenizer, ids[first:])
        assert 0 < len(tokenizer(text)["input_ids"]) <= len(ids) - first


def test_a_server_that_tells_its_reach_needs_a_tokenizer(tmp_path: Path) -> None:
    server = Recorder(None, "A", reach=500)
    server.bounded = True
    setting = Setting(data=write_rows(tmp_path), protocol="paper", limit=1, run_code=True)
    for name in ("short/mmlu_redux", "short/livecodebench_v5"):
        with pytest.raises(AllMemError, match=r"recorder are cut at 500 tokens.*--tokenizer"):
            list(TASKS[name]().examples(setting, server))


def test_the_user_s_cut_goes_before_the_reach(tmp_path: Path) -> None:
    """Also where answers are compared; but no server is asked beyond its reach."""
    setting = Setting(data=write_rows(tmp_path), truncate=3, max_new_tokens=20)
    assert {row["prompt_tokens"] for row in asked("short/arc_easy", setting)} == {3}
    assert all(row["cut"] for row in asked("short/winogrande", setting))
    longer = dataclasses.replace(setting, truncate=12)
    for bounded, left in ((False, 12), (True, 5)):
        prompt, _ = _asked_once("short/math500_plain", longer, 25, bounded=bounded)
        assert len(prompt.ids or ()) == left


def _with_start(tokenizer: Any) -> Any:
    """One that puts a token before every text, as Llama's does."""
    from tokenizers.processors import TemplateProcessing

    start = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{start} $A", special_tokens=[(start, tokenizer.bos_token_id)]
    )
    return tokenizer


@pytest.mark.parametrize("kind", ["plain", "with-start"])
@pytest.mark.parametrize(
    ("context", "continuation"),
    [
        ("Question: who?\nAnswer:", " the old man"),
        ("A context that ends in spaces  ", "and goes on"),
        ("", " nothing before it"),
        ("<|begin_of_text|>its own start", " here"),
        ("答案：", " B"),
    ],
    ids=["plain", "spaces", "empty", "start", "chinese"],
)
def test_pairs_are_tokenised_as_in_lm_eval(kind: str, context: str, continuation: str) -> None:
    from lm_eval.models.huggingface import HFLM

    tokenizer = small_tokenizer("llama3")
    if kind == "with-start":
        tokenizer = _with_start(tokenizer)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8,
                    num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1)
    )  # fmt: skip
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, max_length=64)
    seen: list[tuple[list[int], list[int]]] = []
    theirs._loglikelihood_tokens = lambda requests, **_: seen.extend(r[1:] for r in requests)
    from lm_eval.api.instance import Instance

    theirs.loglikelihood(
        [Instance("loglikelihood", {}, (context, continuation), 0)], disable_tqdm=True
    )
    assert encode_pair(tokenizer, context, continuation) == seen[0]


def test_hellaswag_contexts_are_parted_where_the_sentence_begins() -> None:
    halves = forms.halves_of_context
    assert halves("A man sits on a roof. he") == ("A man sits on a roof.", "he")
    assert halves('A logo "x." appears! " knife') == ('A logo "x." appears!', '" knife')
    assert halves("Clean it. Dry it.") == ("Clean it. Dry it.", "")
    row = dict(ROWS["hellaswag_val.jsonl"][0])
    hub = row | {"ctx_a": "A man sits by the river.", "ctx_b": "the old man", "label": "0"}
    assert forms.hellaswag(row) == forms.hellaswag(hub)


def test_the_hubs_files_give_the_same_documents(tmp_path: Path) -> None:
    """Parquet in the hub's folders, sets by folder, and JSON lines of ours."""
    from datasets import Dataset

    local, hub = tmp_path / "local", tmp_path / "hub"
    for folder in (local, hub / "ARC-Easy", hub / "law"):
        folder.mkdir(parents=True)
    write_rows(local)
    arc = [forms.arc(row) for row in ROWS["arc_easy_test.jsonl"]]
    Dataset.from_list(arc).to_parquet(hub / "ARC-Easy" / "test-00000-of-00001.parquet")
    for split, file in (("val", "ceval_val.jsonl"), ("dev", "ceval_dev.jsonl")):
        rows = [forms.ceval(row) for row in ROWS[file]]
        Dataset.from_list(rows).to_parquet(hub / "law" / f"{split}-00000-of-00001.parquet")
    for name in ("short/arc_easy", "short/ceval"):
        found = [
            [(e.id, e.ask, e.cell) for e in TASKS[name]().examples(Setting(data=data), ours())]
            for data in (local, hub)
        ]
        assert found[0] == found[1]


def test_bad_rows_are_named_and_can_be_left_out(tmp_path: Path) -> None:
    good = ROWS["arc_easy_test.jsonl"][0]
    bad = [
        ('{"question": ', "line 2 is not JSON"),
        ("[1]", "line 2 is a list, not a row"),
        (json.dumps({**good, "question": " "}), "line 2: the field 'question' is empty"),
        (json.dumps({**good, "answer": 3}), "line 2: the field 'answer' is 3, which is none of 3"),
        (json.dumps({"choices": ["a", "b"], "answer": 0}), "the field 'question' is missing"),
    ]
    path = tmp_path / "arc_easy_test.jsonl"
    for line, message in bad:
        path.write_text(f"{json.dumps(good)}\n{line}\n")
        task = TASKS["short/arc_easy"]()
        with pytest.raises(AllMemError, match=message.replace("[", r"\[")):
            list(task.examples(Setting(data=tmp_path), ours()))
        with pytest.warns(UserWarning, match="line 2"):
            kept = list(task.examples(Setting(data=tmp_path, skip_bad_rows=True), ours()))
        assert [e.id for e in kept] == ["0"]


def test_missing_and_damaged_files_say_where_to_get_them(tmp_path: Path) -> None:
    files = Files(("a.jsonl", "b/{subject}.parquet"), "owner/set")
    with pytest.raises(AllMemError, match=r"a\.jsonl, b/.*huggingface\.co/datasets/owner/set"):
        list(read_files(files, Setting(data=tmp_path)))
    with pytest.raises(AllMemError, match="there is no folder"):
        list(read_files(files, Setting(data=tmp_path / "none")))
    (tmp_path / "a.jsonl.xz").write_bytes(b"no archive")
    with pytest.raises(AllMemError, match=r"a\.jsonl\.xz is damaged"):
        list(read_files(files, Setting(data=tmp_path)))
    (tmp_path / "ceval_val.jsonl").write_text(json.dumps(ROWS["ceval_val.jsonl"][0]))
    (tmp_path / "ceval_dev.jsonl").write_text(json.dumps(ROWS["ceval_dev.jsonl"][0]))
    with pytest.raises(AllMemError, match="takes 5 examples, but there are 1"):
        list(TASKS["short/ceval"]().examples(Setting(data=tmp_path), ours()))


def test_without_a_folder_the_hub_is_asked() -> None:
    with pytest.raises(AllMemError, match=r"'arc_easy' cannot be fetched.*--data"):
        list(TASKS["short/arc_easy"]().examples(Setting(), ours()))


def test_lm_eval_draws_without_changing_our_random_numbers() -> None:
    import random

    random.seed(5)
    expected = random.random()
    random.seed(5)
    with draws("a"):
        first = random.random()
    with draws("a"):
        assert random.random() == first
    assert random.random() == expected


def test_a_task_is_loaded_without_a_word(capfd: pytest.CaptureFixture[str]) -> None:
    load_task("arc", "arc_easy", [forms.arc(row) for row in ROWS["arc_easy_test.jsonl"]])
    assert capfd.readouterr() == ("", "")
