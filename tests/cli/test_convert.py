"""``allmem convert``: what it writes, and that it writes whole folders or nothing."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import allmem
from tests.cli.conftest import C, S, W

SIZES = ["--window", str(W), "--sinks", str(S), "--chunk", str(C)]


def test_a_converted_folder_loads_with_the_auto_classes(
    run: Any, base: str, tmp_path: Path
) -> None:
    out = tmp_path / "sub" / "out"
    shown = run("convert", base, str(out), *SIZES, "--projections", "shared", "--rank", "3")
    assert shown.stdout == f"{out}: window {W}, sinks {S}, chunk {C}\n"
    model = AutoModelForCausalLM.from_pretrained(out)
    assert isinstance(model, allmem.AllMemForCausalLM)
    options = model.config.options_of("allmem")
    assert (options.projections, options.rank, options.chunk) == ("shared", 3, C)
    assert len(AutoTokenizer.from_pretrained(out)) == model.config.text_config.vocab_size
    original = AutoModelForCausalLM.from_pretrained(base)
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.allclose(model(ids).logits, original(ids).logits, atol=1e-4)


def test_every_option_reaches_the_configuration(run: Any, base: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = [
        "--mixers",
        "allmem,window",
        "--keep-full",
        "1",
        "--width",
        "12",
        "--dtype",
        "bfloat16",
    ]
    run("convert", base, str(out), *SIZES, *options, "--set", "loss=dot", "--set", "clip=null")
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.config.layers == ["allmem", "full"]
    memory = model.config.options_of("allmem")
    assert (memory.width, memory.loss, memory.clip) == (12, "dot", None)
    assert model.dtype == torch.bfloat16


def test_an_adapter_is_built_in(
    run: Any, base: str, converted: str, adapter: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run("convert", base, str(out), "--adapter", adapter)
    ids = torch.arange(5, 45)[None]
    expected = AutoModelForCausalLM.from_pretrained(converted)(ids).logits
    assert torch.equal(AutoModelForCausalLM.from_pretrained(out)(ids).logits, expected)


def test_a_folder_in_use_is_replaced_only_by_force_and_only_if_it_is_a_model(
    run: Any, fails: Any, base: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    run("convert", base, str(out), *SIZES)
    assert "--force" in fails("convert", base, str(out), *SIZES)
    run("convert", base, str(out), *SIZES, "--set", "conv=0", "--force")
    assert AutoModelForCausalLM.from_pretrained(out).config.options_of("allmem").conv == 0

    diary = tmp_path / "diary"
    diary.mkdir()
    (diary / "monday.txt").write_text("dear diary")
    assert "does not hold a model" in fails("convert", base, str(diary), *SIZES, "--force")
    assert (diary / "monday.txt").read_text() == "dear diary"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["diary", "out"]


def test_a_full_disk_leaves_nothing_behind(
    run: Any, fails: Any, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run("convert", base, str(out), *SIZES)
    before = {p.name: p.read_bytes() for p in out.iterdir()}

    def full(self: Any, folder: Any, **options: Any) -> None:
        (Path(folder) / "config.json").write_text("{")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    assert "the disk is full" in fails("convert", base, str(out), *SIZES, "--force")
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_what_cannot_be_converted_is_said(
    fails: Any, base: str, converted: str, adapter: str, tmp_path: Path
) -> None:
    out = str(tmp_path / "out")
    assert "converted already" in fails("convert", converted, out)
    assert "is the model itself" in fails("convert", base, base, "--force")
    assert "window" in fails("convert", base, out, "--adapter", adapter, "--window", "8")
    assert "rank" in fails("convert", base, out, "--adapter", adapter, "--rank", "8")
    (tmp_path / "file").write_text("x")
    assert "is a file" in fails("convert", base, str(tmp_path / "file"))
    assert not Path(out).exists()
