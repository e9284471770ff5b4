"""The loop: what it changes, what it leaves alone, and how it stops."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from allmem.distill import Step, Trainer, compare
from allmem.distill.evaluate import without_memory
from allmem.distill.run import Texts, distill, prepare_folder, split_texts
from allmem.distill.trainer import ADAPTER, CHECKPOINT
from allmem.errors import AllMemError
from tests.distill.tiny import T, W, make_config, make_model, make_sequences, make_text


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_only_the_memories_change(dtype: torch.dtype) -> None:
    model = make_model(dtype=dtype, random=False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    Trainer(model, make_sequences(), make_config()).run()
    trained = {id(p) for p in model.memory_parameters().values()}
    changed = set()
    for name, parameter in model.named_parameters():
        same = torch.equal(parameter, before[name])
        assert same or id(parameter) in trained, name
        if not same:
            changed.add(id(parameter))
    # Convolutions and rates too; in bf16 some steps are below what the weight can hold.
    assert changed == trained or dtype == torch.bfloat16


@pytest.mark.parametrize("stage", ["solve", "match", "kl", "all"])
def test_the_loss_falls_from_a_random_start(stage: str) -> None:
    model = make_model(dtype=torch.float32)
    held_out = make_text(10 * T, seed=2).view(10, T)
    before = compare(model, held_out)
    steps: list[Step] = []
    config = make_config(stage=stage, tokens=24 * 2 * T, lr=1e-2)
    Trainer(model, make_sequences(), config).run(steps.append)
    after = compare(model, held_out)
    last = steps[-1].stage
    losses = [step.loss for step in steps if step.stage == last]
    third = len(losses) // 3
    assert sum(losses[-third:]) < sum(losses[:third])
    # Alone against what was lost is not the same as the KL, but here it lowers it.
    assert after.memory.kl < before.memory.kl
    assert after.window == before.window


def test_comparing_is_what_the_logits_say() -> None:
    model = make_model()
    ids = make_text(3 * T).view(3, T)
    found = compare(model, ids)
    with torch.no_grad():
        teacher, memory = (
            model(ids, full_attention=full, use_cache=False).logits.log_softmax(-1)[:, W:-1]
            for full in (True, False)
        )
        with without_memory(model):
            window = model(ids, use_cache=False).logits.log_softmax(-1)[:, W:-1]
    targets = ids[:, W + 1 :, None]
    for score, logits in ((found.teacher, teacher), (found.window, window), (found.memory, memory)):
        assert score.loss == pytest.approx(float(-logits.gather(2, targets).mean()))
        kl = (teacher.exp() * (teacher - logits)).sum(-1).mean()
        assert score.kl == pytest.approx(float(kl), abs=1e-12)
    assert found.positions == 3 * (T - W - 1)
    # The memories are back in their places.
    assert all(mixed.memory is not None for mixed in model.mixers())


def test_the_control_reads_a_memory_that_stays_as_it_began() -> None:
    model = make_model()
    ids = make_text(2 * T).view(2, T)
    before = {name: p.detach().clone() for name, p in model.memory_parameters().items()}
    found = compare(model, ids, control=True)
    assert all(torch.equal(p, before[name]) for name, p in model.memory_parameters().items())
    with torch.no_grad():
        for name, parameter in model.memory_parameters().items():
            if ".eta." in name:
                parameter.fill_(0 if "weight" in name else -1e9)
    assert found.unwritten == compare(model, ids).memory != found.memory


def test_a_budget_in_minutes_ends_the_run() -> None:
    steps: list[Step] = []
    config = make_config(tokens=None, minutes=0.01)
    Trainer(make_model(dtype=torch.float32), make_sequences(), config).run(steps.append)
    assert steps[-1].progress == 1
    assert {step.stage for step in steps} == {"solve", "match", "kl"}


@pytest.mark.parametrize("stage", ["solve", "match", "kl"])
def test_a_loss_that_is_no_number_stops_the_run_and_spoils_nothing(
    stage: str, tmp_path: Path
) -> None:
    model = make_model(dtype=torch.float32)
    trainer = Trainer(model, make_sequences(), make_config(stage=stage), tmp_path)
    trainer.save()
    saved = {name: (tmp_path / name).read_bytes() for name in (ADAPTER, CHECKPOINT)}
    with torch.no_grad():
        next(iter(model.memory_parameters().values())).fill_(float("nan"))
    with pytest.raises(AllMemError, match=rf"step 1 \({stage}\): loss nan"):
        trainer.run()
    assert {name: (tmp_path / name).read_bytes() for name in saved} == saved


def test_a_full_disk_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(make_model(), make_sequences(), make_config(checkpoint_steps=2), tmp_path)
    trainer.save()
    before = (tmp_path / CHECKPOINT).read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(AllMemError, match="No space left on device"):
        trainer.run()
    assert (tmp_path / CHECKPOINT).read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([ADAPTER, CHECKPOINT])


def test_sequences_within_the_window_are_an_error() -> None:
    with pytest.raises(AllMemError, match=f"length = {W} does not reach beyond window = {W}"):
        Trainer(make_model(), make_sequences(length=W), make_config(length=W))


def test_a_model_without_memories_is_an_error() -> None:
    with pytest.raises(AllMemError, match="no layer has a memory"):
        Trainer(make_model(mixers="window"), make_sequences(), make_config())


class _Letters:
    """A tokenizer whose tokens are letters."""

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [3 + ord(letter) % 40 for letter in text]}


def test_the_last_tenth_is_held_out_if_no_text_is_named() -> None:
    texts = split_texts(_Letters(), ["a" * 50, "b" * 100], None)
    assert [len(t) for t in texts.training] == [50, 90]
    assert len(texts.held_out) == 10
    named = split_texts(_Letters(), ["a" * 50], "c" * 7)
    assert [len(t) for t in named.training] == [50]
    assert len(named.held_out) == 7


def test_a_run_writes_its_figures_and_keeps_those_from_before_when_resumed(tmp_path: Path) -> None:
    texts = Texts([make_text()], make_text(200, seed=2))
    config = make_config()
    first = distill(make_model(dtype=torch.float32), texts, config, tmp_path, evaluated=2)
    again = distill(
        make_model(dtype=torch.float32), texts, config, tmp_path, resume=True, evaluated=2
    )
    assert again.before == first.before != first.after
    assert again.after == first.after


def test_a_folder_with_a_run_is_not_started_over(tmp_path: Path) -> None:
    with pytest.raises(AllMemError, match="to resume from"):
        prepare_folder(str(tmp_path), resume=True)
    Trainer(make_model(), make_sequences(), make_config(), tmp_path).save()
    with pytest.raises(AllMemError, match="holds a run already"):
        prepare_folder(str(tmp_path), resume=False)
    assert prepare_folder(str(tmp_path), resume=True) == tmp_path
