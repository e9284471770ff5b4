"""``allmem data teach``: what is stored is what the teacher says, and no crash changes it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import normalizers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig
from typer.testing import CliRunner, Result

import allmem
from allmem.cli.main import app
from allmem.data import teaching
from allmem.data.labels import IGNORED
from allmem.data.shards import INDEX, read_index
from allmem.data.stream import RowStream, collate
from allmem.data.teaching import Taught, stored_bytes, teach_data
from allmem.distill import Distillation, DistillConfig
from allmem.distill.rows import own_sizes
from allmem.distill.teacher import OtherModel, Stored, Teacher
from allmem.errors import AllMemError
from tests.cli.conftest import make_tokenizer
from tests.data.folders import TOKENIZER, build, chats, config, write_rows

W, S, C, V = 16, 2, 8, len(TOKENIZER)


class Killed(BaseException):
    """Ends a run where a test wants it to end."""


def make_base(seed: int) -> Any:
    """A model so random that its predictions are far apart."""
    torch.manual_seed(seed)
    sizes = LlamaConfig(
        vocab_size=V,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
    )
    return AutoModelForCausalLM.from_config(sizes).eval()


def make_student(seed: int = 1) -> allmem.AllMemForCausalLM:
    """All slow weights drawn at random."""
    model = allmem.convert(make_base(seed), window=W, sinks=S, chunk=C)
    with torch.no_grad():
        for parameter in model.memory_parameters().values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``data`` of two length classes in several shards, a ``teacher``, and what it said of every
    word (``whole``) and of the likeliest five (``five``)."""
    root = tmp_path_factory.mktemp("teaching")
    rows = chats(50)
    rows += [{"prompt": f"{i} " + "river water " * 60, "response": f"yes {i}"} for i in range(4)]
    path = write_rows(root / "a.jsonl", rows)
    build(config({"path": str(path)}), root / "data")
    make_base(0).save_pretrained(root / "teacher")
    TOKENIZER.save_pretrained(root / "teacher")
    teach(root / "whole", top=V)
    teach(root / "five", top=5)
    return root


def teach(output: Path, **options: Any) -> Any:
    """Files of a few rows each, so that there are several to a shard."""
    root = output.parent
    given = {"folder": root / "data", "teacher": str(root / "teacher"), "device": "cpu", **options}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teaching, "PART_TOKENS", 300)
        return teach_data(output=output, **given)


def rows_of(folder: Path) -> list[dict[str, Tensor]]:
    return list(RowStream(folder, epochs=1))


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_each_learned_token_has_what_the_teacher_says_of_it(place: Path) -> None:
    teacher = AutoModelForCausalLM.from_pretrained(place / "teacher")
    packed = 0
    for row in rows_of(place / "five"):
        ids, said = row["input_ids"], row["teacher_log_probs"]
        assert row["teacher_ids"].shape == said.shape == (len(ids), 5)
        assert (row["teacher_ids"].dtype, said.dtype) == (torch.int32, torch.float16)
        starts = (row["position_ids"] == 0).nonzero()[:, 0].tolist()
        packed += len(starts) > 1
        for begin, end in pairwise([*starts, len(ids)]):
            # A document read alone: what stands before it in the row does not matter.
            with torch.no_grad():
                logits = teacher(ids[None, begin:end]).logits[0]
            expected = logits[:-1].log_softmax(-1).topk(5)
            learned = row["labels"][begin + 1 : end] != IGNORED
            here = slice(begin + 1, end)
            assert learned.any()
            assert torch.equal(row["teacher_ids"][here][learned].long(), expected.indices[learned])
            torch.testing.assert_close(
                said[here][learned].float(), expected.values[learned], atol=2e-3, rtol=2e-3
            )
        assert not said[row["labels"] == IGNORED].any()
    assert packed > 3


@pytest.fixture(scope="module")
def batch(place: Path) -> dict[str, Tensor]:
    """Rows of different lengths, one of them of several documents."""
    rows = [row for row in rows_of(place / "whole") if len(row["input_ids"]) < 130]
    rows.sort(key=lambda row: int((row["position_ids"] == 0).sum()))
    return collate([rows[0], rows[-1]])


@pytest.mark.parametrize("changes", [{}, {"segment": 50}], ids=["packed", "in-segments"])
def test_all_words_stored_give_the_teacher_s_own_loss_and_gradient(
    place: Path, batch: dict[str, Tensor], changes: dict[str, Any]
) -> None:
    student = make_student()
    teacher = AutoModelForCausalLM.from_pretrained(place / "teacher")
    settings = DistillConfig(steps=1, **changes)

    def loss(teacher: Teacher, rows: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        student.zero_grad()
        distillation = Distillation(student, settings, "kl", teacher)
        total, _ = distillation(**rows, sizes=own_sizes(student))
        total.backward()
        gradients = [p.grad for p in distillation.parameters() if p.grad is not None]
        return total.detach(), torch.cat([g.flatten() for g in gradients])

    bare = {k: v for k, v in batch.items() if not k.startswith("teacher")}
    expected, gradient = loss(OtherModel(teacher, student), bare)
    found, other = loss(Stored(), batch)
    assert expected > 10
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=0)
    assert (other - gradient).norm() < 2e-3 * gradient.norm()
    # What another teacher says is told apart.
    wrong, _ = loss(OtherModel(make_base(5), student), bare)
    assert abs(wrong - expected) > 0.01 * expected


def test_a_converted_teacher_answers_with_full_attention(place: Path, tmp_path: Path) -> None:
    make_student(seed=0).save_pretrained(tmp_path / "converted")
    TOKENIZER.save_pretrained(tmp_path / "converted")
    shutil.copytree(place / "data", tmp_path / "data")
    teach(tmp_path / "out", teacher=str(tmp_path / "converted"), top=V)
    plain = rows_of(place / "whole")
    for found, expected in zip(rows_of(tmp_path / "out"), plain, strict=True):
        learned = expected["labels"] != IGNORED
        dense = [
            row["teacher_log_probs"][learned]
            .float()
            .gather(1, row["teacher_ids"][learned].argsort(1))
            for row in (found, expected)
        ]
        torch.testing.assert_close(*dense, atol=5e-2, rtol=5e-3)


def test_the_data_itself_is_as_it_was(place: Path) -> None:
    for found, expected in zip(rows_of(place / "five"), rows_of(place / "data"), strict=True):
        assert set(expected) == {"input_ids", "labels", "position_ids"}
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor)
    assert RowStream(place / "five").fingerprint != RowStream(place / "whole").fingerprint


def count_calls(monkeypatch: pytest.MonkeyPatch, name: str, last: int | None) -> list[int]:
    """Count the calls of one of the module's functions; the one after ``last`` kills the run."""
    calls = [0]
    real: Callable[..., Any] = getattr(teaching, name)

    def counted(*args: Any, **options: Any) -> Any:
        if calls[0] == last:
            raise Killed
        calls[0] += 1
        return real(*args, **options)

    monkeypatch.setattr(teaching, name, counted)
    return calls


@pytest.mark.parametrize("where", ["_copy", "_ask", "write_answers", "write_index"])
def test_a_killed_run_goes_on_to_the_same_folder(place: Path, tmp_path: Path, where: str) -> None:
    out = tmp_path / "out"
    for after in (0, 1, 3):
        with pytest.MonkeyPatch.context() as patch:
            count_calls(patch, where, after)
            with pytest.raises(Killed):
                teach(out, folder=place / "data", teacher=str(place / "teacher"), top=5)
        (out / f".{INDEX}.0a.part").write_text("torn")
        if (out / INDEX).exists():
            with pytest.raises(AllMemError, match="allmem data teach"):
                RowStream(out)
    teach(out, folder=place / "data", teacher=str(place / "teacher"), top=5)
    assert contents(out) == contents(place / "five")


def test_what_is_committed_is_not_asked_again(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(place / "data", tmp_path / "data")
    source = str(place / "teacher")
    total = sum(shard["rows"] for shard in read_index(place / "data").shards)
    with pytest.MonkeyPatch.context() as patch:
        count_calls(patch, "_ask", total - 1)
        with pytest.raises(Killed):
            teach(tmp_path / "out", teacher=source, top=5)
    calls = count_calls(monkeypatch, "_ask", None)
    heard: list[Taught] = []
    teach(tmp_path / "out", teacher=source, top=5, on_progress=heard.append)
    assert 0 < calls[0] < total / 3
    assert (heard[-1].rows, heard[-1].tokens) == (heard[-1].all_rows, heard[-1].all_tokens)
    assert heard[-1].all_rows == total
    teach(tmp_path / "out", teacher=source, top=5)
    assert calls[0] == len(heard)


def test_the_estimate_is_near_what_is_stored(place: Path) -> None:
    for name, top in (("five", 5), ("whole", V)):
        size = sum(f.stat().st_size for f in (place / name).glob("*.safetensors"))
        estimate = stored_bytes(read_index(place / "data"), top)
        # Headers weigh in files this small.
        assert 0.6 * size < estimate < 1.1 * size


def test_another_teacher_or_number_of_words_is_refused(place: Path, tmp_path: Path) -> None:
    for name in ("data", "five"):
        shutil.copytree(place / name, tmp_path / name)
    make_base(7).save_pretrained(tmp_path / "other")
    TOKENIZER.save_pretrained(tmp_path / "other")
    with pytest.raises(AllMemError, match="the fingerprint of the teacher was"):
        teach(tmp_path / "five", teacher=str(tmp_path / "other"), top=5)
    with pytest.raises(AllMemError, match="number of words was 5, now it is 6"):
        teach(tmp_path / "five", teacher=str(place / "teacher"), top=6)
    # The same weights from elsewhere are the same teacher.
    shutil.copytree(place / "teacher", tmp_path / "moved")
    assert teach(tmp_path / "five", teacher=str(tmp_path / "moved"), top=5).done


def test_a_teacher_with_other_words_is_refused(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "data", tmp_path / "data")
    shutil.copytree(place / "teacher", tmp_path / "foreign")
    make_tokenizer().save_pretrained(tmp_path / "foreign")
    with pytest.raises(AllMemError, match="whether their words are the same cannot be seen"):
        teach(tmp_path / "out", teacher=str(tmp_path / "foreign"))
    index = (tmp_path / "data" / INDEX).read_text()
    index = index.replace('"model": "none"', f'"model": "{place / "teacher"}"')
    (tmp_path / "data" / INDEX).write_text(index)
    with pytest.raises(AllMemError, match="has another tokenizer than"):
        teach(tmp_path / "out", teacher=str(tmp_path / "foreign"))
    # The same words under another normaliser are the same words.
    shutil.rmtree(tmp_path / "foreign")
    shutil.copytree(place / "teacher", tmp_path / "foreign")
    tokenizer = AutoTokenizer.from_pretrained(place / "teacher")
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    tokenizer.save_pretrained(tmp_path / "foreign")
    teach(tmp_path / "out", teacher=str(tmp_path / "foreign"), top=5)


@pytest.mark.parametrize("damage", ["altered", "missing", "bytes"])
def test_damaged_answers_are_named(place: Path, tmp_path: Path, damage: str) -> None:
    out = tmp_path / "five"
    shutil.copytree(place / "five", out)
    file = next(out.glob("short-*-teacher-001.safetensors"))
    data = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    else:
        data[-1] ^= 1
        file.write_bytes(data if damage == "altered" else data[:-1])
    with pytest.raises(AllMemError, match=f"{file.name}.*{damage}"):
        rows_of(out)


def test_wrong_places_are_refused(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "data", tmp_path / "data")
    source = str(place / "teacher")
    with pytest.raises(AllMemError, match="is the data itself"):
        teach(tmp_path / "data", teacher=source)
    shutil.copytree(place / "data", tmp_path / "more")
    with pytest.raises(AllMemError, match="holds data without a teacher"):
        teach(tmp_path / "more", teacher=source)
    (tmp_path / "diary").mkdir()
    (tmp_path / "diary" / "monday.txt").write_text("dear diary")
    with pytest.raises(AllMemError, match="holds other files"):
        teach(tmp_path / "diary", teacher=source)
    with pytest.raises(AllMemError, match=f"more than the {V} words"):
        teach(tmp_path / "out", teacher=source, top=V + 1)
    index = (tmp_path / "data" / INDEX).read_text().replace('"done": true', '"done": false')
    (tmp_path / "data" / INDEX).write_text(index)
    with pytest.raises(AllMemError, match="is not complete"):
        teach(tmp_path / "out", teacher=source)


def test_a_disk_that_is_too_small_is_told_before_the_work(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(place / "data", tmp_path / "data")
    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real._replace(free=1000))
    calls = count_calls(monkeypatch, "_ask", None)
    with pytest.raises(AllMemError, match="needs about"):
        teach(tmp_path / "out", teacher=str(place / "teacher"))
    assert calls == [0]


@pytest.fixture
def _environment() -> Iterator[None]:
    """Commands silence the libraries underneath for the whole process."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def run(*args: object) -> Result:
    return CliRunner().invoke(app, ["data", *map(str, args)])


@pytest.mark.usefixtures("_environment")
def test_the_command_says_how_much_it_will_store_and_did(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = ["teach", place / "data", "--model", place / "teacher", "-o", out, "--top", 5]
    done = run(*asked, "--device", "cpu")
    assert done.exit_code == 0, done.output
    learned = sum(shard["response_tokens"] for shard in read_index(place / "data").shards)
    assert f"{learned:,} learned tokens, 5 words each: about" in done.stderr
    assert done.stdout.startswith(f"{out}: {learned:,} tokens answered, ")
    shown = run("inspect", out)
    if shown.exit_code:
        # The tokenizer that the data was built with has no name; the rest is shown before.
        assert "none" in shown.stderr
    assert f"With answers of {place / 'teacher'}: 5 words for {learned:,} tokens." in shown.stdout
    assert "name the teacher" in run("teach", place / "data", "-o", out).stderr
    assert "name the data folder to teach" in run("teach").stderr
