"""``allmem export``: a folder that others can load, and a card that says what the files say."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import constants, metadata_load
from transformers import AutoModelForCausalLM, LlamaConfig

import allmem
from allmem.choices import Conversion
from allmem.data.shards import read_index
from allmem.distill import DistillConfig
from allmem.distill.launch import run_recipe
from allmem.distill.recipe import DataSource, Recipe
from allmem.errors import AllMemError
from allmem.export import export
from allmem.files import read_tensors, write_tensors
from allmem.models.adapter import adapter_note, trained_tokens
from allmem.opening import open_model
from tests.cli.conftest import C, S, W
from tests.data.folders import TOKENIZER, build, chats, config, write_rows

SECRET = "secret_place"
"""A folder on the way to everything, which no exported file may name."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base``, ``data`` and ``run``, a finished run with its recipe."""
    root = tmp_path_factory.mktemp("export") / SECRET
    torch.manual_seed(0)
    sizes = LlamaConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
    )
    AutoModelForCausalLM.from_config(sizes).save_pretrained(root / "base")
    TOKENIZER.save_pretrained(root / "base")
    (root / "base" / "README.md").write_text("---\nlicense: mit\n---\n# A base\n")
    rows = write_rows(root / "chats.jsonl", chats(30))
    sources: list[dict[str, Any]] = [{"path": str(rows)}, {"path": str(rows), "name": "again"}]
    build(config(*sources), root / "data")
    recipe = Recipe(
        model=str(root / "base"),
        output=str(root / "run"),
        data=DataSource(folder=str(root / "data"), evaluated=2),
        training=DistillConfig(steps=4, checkpoint_steps=1),
        conversion=Conversion(W, S, C, mixers="allmem,window"),
        device="cpu",
    )
    run_recipe(recipe)
    return root


@pytest.fixture
def copied(place: Path, tmp_path: Path) -> Path:
    """The run's folder, to be changed."""
    return Path(shutil.copytree(place / "run", tmp_path / "copied"))


def assert_no_path(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            assert SECRET.encode() not in file.read_bytes(), file


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def logits(model: Any) -> torch.Tensor:
    return model(torch.arange(5, 65)[None]).logits


def test_the_card_says_what_the_files_say(run: Any, place: Path, tmp_path: Path) -> None:
    out = tmp_path / "sub" / "out"
    shown = run("export", str(place / "run"), "-o", str(out))
    assert [line.split()[0] for line in shown.stdout.splitlines()] == [
        str(out / "README.md"),
        str(out / "adapter.safetensors"),
    ]
    assert shown.stderr == ""
    assert metadata_load(out / "README.md") == {
        "library_name": "allmem",
        "license": "mit",
        "pipeline_tag": "text-generation",
        "tags": ["allmem", "long-context", "sliding-window-attention", "test-time-training"],
    }
    card = (out / "README.md").read_text()
    weights, header = read_tensors(place / "run" / "adapter.safetensors", "adapter")
    slow = sum(t.numel() for t in weights.values())
    for said in (
        "| base model | `base` |",
        f"`{header['base']}`",
        f"window {W}, sinks {S}, chunk {C}",
        "| layers with a memory | 1 of 2 |",
        "0 allmem, 1 window",
        f"| slow parameters | {slow:,} |",
        f"- tokens: {header['note']['tokens']:,}",
        "- steps: 4",
        "- stages, in steps: solve 1, kl 3",
        "- teacher: the model itself, with full attention",
        "allmem distill recipe.yaml",
        "allmem ask base --adapter adapter.safetensors --document",
        "A Memory-centric Recipe for Efficient Long-context Modeling",
    ):
        assert said in card, said
    assert "Quantised" not in card
    options = yaml.safe_load(card.split("Options of the memories:\n\n```yaml\n")[1].split("```")[0])
    assert options == header["mixer_options"]
    assert_no_path(out)


def test_half_an_adapter_keeps_what_is_small(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("allmem.export.writing.LARGE", 500)
    export(place / "run", tmp_path / "whole")
    export(place / "run", tmp_path / "half", half=True)
    whole, half = (
        read_tensors(tmp_path / name / "adapter.safetensors", "adapter")[0]
        for name in ("whole", "half")
    )
    assert {t.dtype for t in half.values()} == {torch.float32, torch.bfloat16}
    for name, tensor in whole.items():
        expected = tensor.bfloat16() if tensor.numel() >= 500 else tensor
        assert half[name].equal(expected)
    exact, rounded = (
        logits(open_model(str(place / "base"), adapter=str(tmp_path / name)).model)
        for name in ("whole", "half")
    )
    assert (rounded - exact).norm() < 0.02 * exact.norm()
    with pytest.raises(AllMemError, match="half is for the adapter alone"):
        export(place / "run", tmp_path / "merged", merged=True, half=True)


def test_the_card_tells_of_the_training_that_went_on(place: Path, tmp_path: Path) -> None:
    first = place / "run" / "adapter.safetensors"
    recipe = Recipe(
        model=str(place / "base"),
        adapter=str(first),
        output=str(tmp_path / "on"),
        data=DataSource(folder=str(place / "data"), evaluated=2),
        training=DistillConfig(steps=2, stage="kl"),
    )
    outcome = run_recipe(recipe)
    begun = adapter_note(first)
    note = adapter_note(tmp_path / "on")
    assert note == {"tokens": outcome.tokens, "steps": 2, "before": begun}
    assert trained_tokens(note) == outcome.tokens + begun["tokens"]
    card = (export(tmp_path / "on", tmp_path / "out") / "README.md").read_text()
    assert f"- tokens: {outcome.tokens:,}\n- steps: 2\n" in card
    said = f"- before it, in a run of its own: tokens: {begun['tokens']:,}, steps: 4\n"
    assert said in card
    assert trained_tokens({"steps": 3, "before": begun}) is None


@pytest.mark.parametrize("merged", [False, True])
def test_it_may_be_read_with_another_window(place: Path, tmp_path: Path, merged: bool) -> None:
    out = export(place / "run", tmp_path / "wide", window=W + 3, merged=merged)
    base = str(place / "base")
    wide = open_model(str(out)) if merged else open_model(base, adapter=str(out))
    assert wide.model.config.window == W + 3
    adapter = str(place / "run" / "adapter.safetensors")
    asked = open_model(base, Conversion(window=W + 3, sinks=S), adapter=adapter)
    ids = torch.arange(40)[None] % 13
    with torch.no_grad():
        expected = asked.model(ids, past_key_values=asked.new_cache()).logits
        assert wide.model(ids).logits.allclose(expected, atol=1e-5)
        assert not asked.model(ids).logits.allclose(expected, atol=1e-3)
    card = (out / "README.md").read_text()
    assert f"window {W + 3}, sinks {S}, chunk {C}" in card
    assert f"| trained and judged with | window {W} |" in card


@pytest.mark.parametrize("window", [S, C - 1])
def test_a_window_that_does_not_fit_leaves_nothing(
    place: Path, tmp_path: Path, window: int
) -> None:
    with pytest.raises(AllMemError, match="window"):
        export(place / "run", tmp_path / "out", window=window)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kinds", [["loss", "kl"], ["loss", "kl", "accuracy"]], ids=" ".join)
def test_the_card_s_figures_are_those_of_the_results(
    run: Any, copied: Path, tmp_path: Path, kinds: list[str]
) -> None:
    found = json.loads((copied / "results.json").read_text())
    for when, value in (("before", 0.25), ("after", 0.5)):
        for reader in ("teacher", "window", "memory", "unwritten"):
            # The tiny model is never right, and an older run did not count it.
            score = found[when][reader] or {}
            score.pop("accuracy", None)
            score |= {"accuracy": value} if "accuracy" in kinds and score else {}
    (copied / "results.json").write_text(json.dumps(found))
    run("export", str(copied), "-o", str(tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    before, after = found["before"], found["after"]
    for name, reader in (
        ("full attention (the base itself)", "teacher"),
        ("window alone", "window"),
        ("window and memory", "memory"),
    ):
        scores = [t[reader][k] for k in kinds for t in (before, after)]
        assert f"| {name} | " + " | ".join(f"{s:.4f}" for s in scores) + " |\n" in card
    never = "".join(f" |  | {after['unwritten'][k]:.4f}" for k in kinds)
    assert f"| the same, memory never written{never} |\n" in card
    closed = 1 - after["memory"]["kl"] / after["window"]["kl"]
    assert f"closed {closed:.1%} of the window's KL" in card
    assert f"On {after['positions']:,} held-out positions beyond the window" in card


def test_the_card_counts_the_data_that_the_run_has_read(
    run: Any, place: Path, copied: Path, tmp_path: Path
) -> None:
    run("export", str(place / "run"), "-o", str(tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    index = read_index(place / "data")
    (kept,) = [c["kept"] for c in index.counts.values() if "kept" in c]
    assert "the folder `data` of `allmem data build`" in card
    assert f"| chats.jsonl | {kept} |" in card
    assert "| again | 0 |" in card
    short = index.of_class("short")
    sums = [sum(s[k] for s in short) for k in ("rows", "samples", "tokens", "response_tokens")]
    assert f"| short | {' | '.join(f'{n:,}' for n in sums)} |" in card
    # Another build in the same place is not what the run has read.
    essence = json.loads((copied / "run.json").read_text())["essence"]
    edit_json(copied / "run.json", essence=essence | {"data": "0123 mix"})
    run("export", str(copied), "-o", str(tmp_path / "other"))
    other = (tmp_path / "other" / "README.md").read_text()
    assert "the folder `data`" in other
    assert "chats.jsonl" not in other


def test_the_state_s_size_is_what_a_reading_leaves_behind(
    run: Any, place: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run("export", str(place / "run"), "-o", str(out))
    model = allmem.load_adapter(place / "base", out / "adapter.safetensors")
    cache = model(torch.arange(5, 60)[None], use_cache=True).past_key_values
    assert f"{cache.nbytes:,} bytes in float32, however long" in (out / "README.md").read_text()


def test_an_exported_adapter_computes_the_same(run: Any, place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("export", str(place / "run"), "-o", str(out))
    expected = allmem.load_adapter(place / "base", place / "run" / "adapter.safetensors")
    found = allmem.load_adapter(place / "base", out / "adapter.safetensors")
    assert torch.equal(logits(found), logits(expected))
    assert read_tensors(out / "adapter.safetensors", "adapter")[1]["base_source"] == "base"


def test_a_merged_model_loads_anywhere_and_computes_the_same(
    run: Any, place: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    run("export", str(place / "run"), "-o", str(out), "--merged")
    expected = allmem.load_adapter(place / "base", place / "run" / "adapter.safetensors")
    assert any(m.alpha.any() for m in expected.mixers() if m.memory is not None)
    model = AutoModelForCausalLM.from_pretrained(out)
    assert torch.equal(logits(model), logits(expected))
    assert_no_path(out)
    assert 'from_pretrained("out")' in (out / "README.md").read_text()
    document = tmp_path / "book.txt"
    document.write_text("What the old man said about the river was true. " * 9)
    run("ask", str(out), "--document", str(document), "-n", "2", "Who said so?")


def test_an_adapter_s_file_tells_less(run: Any, place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    checkpoint = place / "run" / "2-kl" / "checkpoint-3" / "adapter.safetensors"
    run("export", str(checkpoint), "-o", str(out))
    card = (out / "README.md").read_text()
    assert "a checkpoint from the stage kl" in card
    assert "## Results" not in card
    assert "recipe" not in card.lower().replace("memory-centric recipe", "")


def test_a_run_without_a_recipe_shows_its_settings(run: Any, copied: Path, tmp_path: Path) -> None:
    (copied / "recipe.yaml").unlink()
    run("export", str(copied), "-o", str(tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    settings = yaml.safe_load(card.split("as run.json keeps them:\n\n```yaml\n")[1].split("```")[0])
    assert settings["lr"] == 1e-3
    assert settings["steps"] == 4
    assert "allmem distill" not in card
    assert_no_path(tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": {"texts": [f"/{SECRET}/a.txt", "b.txt"], "length": 64}}, "`a.txt`, `b.txt`"),
        ({"data": {"responses": f"/{SECRET}/own.jsonl"}}, "`own.jsonl`"),
        ({"data": {"folder": f"/{SECRET}/gone"}}, "the folder `gone`"),
        ({"data": {"on_policy": {"prompts": [f"/{SECRET}/a.jsonl"]}}}, "prompts of `a.jsonl`"),
        ({"teacher": {"kind": "stored"}}, "answers that were stored with the data"),
        ({"teacher": {"kind": "model", "model": f"/{SECRET}/larger"}}, "teacher: `larger`"),
    ],
    ids=["texts", "responses", "data-that-is-gone", "on-policy", "stored-teacher", "other-teacher"],
)
def test_data_and_teachers_are_named_without_their_paths(
    run: Any, copied: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    recipe = yaml.safe_load((copied / "recipe.yaml").read_text())
    (copied / "recipe.yaml").write_text(yaml.safe_dump(recipe | changes))
    run("export", str(copied), "-o", str(tmp_path / "out"))
    assert said in (tmp_path / "out" / "README.md").read_text()
    assert_no_path(tmp_path / "out")


def test_a_base_from_the_hub_is_linked_and_its_licence_taken_over(
    run: Any, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    snapshot = cache / "models--someone--tiny" / "snapshots" / "0a"
    shutil.copytree(place / "base", snapshot)
    (snapshot / "README.md").write_text(
        "---\nlicense: other\nlicense_name: mine\nlicense_link: LICENSE\n---\n"
    )
    refs = cache / "models--someone--tiny" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0a")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    for merged, relation in (([], "adapter"), (["--merged"], "finetune")):
        out = tmp_path / relation
        source = str(place / "run" / "adapter.safetensors")
        run("export", source, "-o", str(out), "--base", "someone/tiny", *merged)
        front: Any = metadata_load(out / "README.md")
        assert front["base_model"] == "someone/tiny"
        assert front["base_model_relation"] == relation
        assert (front["license"], front["license_name"]) == ("other", "mine")
        assert "license_link" not in front
        assert_no_path(out)
    assert 'open_model("someone/tiny"' in (tmp_path / "adapter" / "README.md").read_text()


@pytest.mark.parametrize(
    ("kind", "layers", "caveat"),
    [(3, 2, "of the type MOSTLY_Q4_1"), (0, 4, ""), (None, 0, "a GGUF file: its")],
    ids=["quantised", "fp32-and-of-other-layers", "gone"],
)
def test_a_quantised_base_is_named_as_such(
    run: Any, adapter: str, tmp_path: Path, kind: int | None, layers: int, caveat: str
) -> None:
    from gguf import GGUFWriter

    file = tmp_path / SECRET / "tiny.gguf"
    file.parent.mkdir()
    if kind is not None:
        writer = GGUFWriter(file, "llama")
        writer.add_license("apache-2.0")
        writer.add_file_type(kind)
        writer.add_block_count(layers)
        writer.add_context_length(128)
        writer.add_embedding_length(32)
        writer.add_feed_forward_length(48)
        writer.add_head_count(4)
        writer.add_head_count_kv(2)
        writer.add_layer_norm_rms_eps(1e-6)
        writer.add_vocab_size(300)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
    weights, header = read_tensors(adapter, "adapter")
    own = tmp_path / "own.safetensors"
    write_tensors(own, "adapter", weights, header | {"base_source": str(file)})
    # What cannot be told of a base is no reason not to export its adapter.
    shown = run("export", str(own), "-o", str(tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert ("cannot be read here" in shown.stderr) == (layers != 2)
    assert ("bytes in float32" in card) == (layers == 2)
    front: Any = metadata_load(tmp_path / "out" / "README.md")
    assert front.get("license") == (None if kind is None else "apache-2.0")
    assert "`tiny.gguf`" in card
    assert ("Quantised base" in card) == bool(caveat)
    assert caveat in card
    assert_no_path(tmp_path / "out")


def test_other_weights_are_refused_or_named(
    run: Any, fails: Any, place: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(place / "base", other)
    model = AutoModelForCausalLM.from_pretrained(other)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(2)
    model.save_pretrained(other)
    args = ["export", str(place / "run"), "-o", str(tmp_path / "out"), "--base", str(other)]
    assert "another base model" in fails(*args)
    assert not (tmp_path / "out").exists()
    run(*args, "--other-base")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "**Another base.** The memory was trained beside other weights (`base`)" in card
    assert "--adapter adapter.safetensors --other-base" in card


def test_a_run_that_is_not_finished_says_how_far_it_is(fails: Any, copied: Path) -> None:
    args = ["export", str(copied), "-o", "unused"]
    edit_json(copied / "results.json", after=None)
    said = fails(*args)
    assert "its last checkpoint is at step 4 of 4 (stage kl)" in said
    assert "--resume" in said
    shutil.rmtree(copied / "2-kl")
    assert "at step 1 of 4 (stage solve)" in fails(*args)
    shutil.rmtree(copied / "1-solve")
    assert "before its first checkpoint, with 4 steps to go" in fails(*args)
    (copied / "results.json").unlink()
    assert "is not finished" in fails(*args)


def test_files_that_are_missing_or_damaged_are_named(
    fails: Any, copied: Path, adapter: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def said() -> str:
        return fails("export", str(copied), "-o", str(out))

    whole = (copied / "adapter.safetensors").read_bytes()
    (copied / "adapter.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "was altered" in said()
    shutil.copy(adapter, copied / "adapter.safetensors")
    assert "is not of the run" in said()
    (copied / "adapter.safetensors").unlink()
    assert "adapter.safetensors is missing" in said()
    edit_json(copied / "results.json", after={"teacher": 3})
    assert "results.json is damaged" in said()
    (copied / "run.json").write_text("{")
    assert "run.json is damaged" in said()
    (copied / "run.json").unlink()
    assert "holds no run.json" in said()
    assert "there is no folder or file nowhere" in fails("export", "nowhere", "-o", str(out))
    assert not out.exists()


def test_a_base_that_is_gone_can_be_named(
    run: Any, fails: Any, place: Path, tmp_path: Path
) -> None:
    weights, header = read_tensors(place / "run" / "adapter.safetensors", "adapter")
    own = tmp_path / "own.safetensors"
    write_tensors(own, "adapter", weights, header | {"base_source": f"/{SECRET}/gone"})
    args = ["export", str(own), "-o", str(tmp_path / "out"), "--merged"]
    assert "name the base: --base MODEL" in fails(*args)
    run(*args, "--base", str(place / "base"))
    write_tensors(own, "adapter", weights, header | {"base_source": None})
    assert "does not name its base" in fails(*args[:3], str(tmp_path / "no"), "--merged")
    run(*args[:3], str(tmp_path / "nameless"))
    assert "does not name" in (tmp_path / "nameless" / "README.md").read_text()


def test_a_folder_in_use_is_left_alone_and_a_full_disk_leaves_nothing(
    fails: Any, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diary, out = tmp_path / "diary", tmp_path / "out"
    diary.mkdir()
    (diary / "monday.txt").write_text("dear diary")
    assert "not empty" in fails("export", str(place / "run"), "-o", str(diary))
    assert "is a file" in fails("export", str(place / "run"), "-o", str(diary / "monday.txt"))
    out.mkdir()

    def full(self: Path, text: str, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    assert "No space left" in fails("export", str(place / "run"), "-o", str(out))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["diary", "out"]
    assert list(out.iterdir()) == []
    assert [p.name for p in diary.iterdir()] == ["monday.txt"]
