"""A whole run: what it changes, what it leaves alone, and how it stops."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from allmem.config import WindowConfig
from allmem.distill import RandomSizes, Step, compare, distill
from allmem.distill.precision import training_weights
from allmem.distill.rows import plain_row
from allmem.distill.run_files import RUN, prepare_folder
from allmem.distill.trainer import ADAPTER
from allmem.errors import AllMemError
from allmem.files import read_tensors
from allmem.models.adapter import load_adapter
from allmem.models.cache import AllMemCache
from allmem.models.variants import without_memory
from tests.distill.tiny import S, T, W, make_config, make_held_out, make_model, make_rows, make_text


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_only_the_memories_change(dtype: torch.dtype) -> None:
    model = make_model(dtype=dtype, random=False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    distill(model, make_rows(), make_held_out(2), make_config())
    trained = {id(p) for p in model.memory_parameters().values()}
    changed = set()
    for name, parameter in model.named_parameters():
        assert parameter.dtype == before[name].dtype
        same = torch.equal(parameter, before[name])
        assert same or id(parameter) in trained, name
        if not same:
            changed.add(id(parameter))
    # Convolutions and rates too; in bf16 some steps are below what the weight can hold.
    assert changed == trained or dtype == torch.bfloat16


def test_slow_weights_are_trained_in_fp32() -> None:
    model = make_model(dtype=torch.bfloat16)
    own = {name: p.dtype for name, p in model.memory_parameters().items()}
    with training_weights(model):
        parameters = model.memory_parameters()
        assert {p.dtype for p in parameters.values()} == {torch.float32}
        assert all(p.requires_grad for p in parameters.values())
        trainable = {id(p) for p in parameters.values()}
        assert not any(p.requires_grad for p in model.parameters() if id(p) not in trainable)
    assert {name: p.dtype for name, p in model.memory_parameters().items()} == own


@pytest.mark.parametrize("stage", ["solve", "match", "kl", "all"])
def test_the_loss_falls_from_a_random_start(stage: str) -> None:
    model = make_model(dtype=torch.float32)
    held_out = make_held_out()
    steps: list[Step] = []
    config = make_config(stage=stage, steps=24, lr=1e-2)
    outcome = distill(model, make_rows(), held_out, config, on_step=steps.append)
    last = steps[-1].stage
    losses = [step.loss for step in steps if step.stage == last]
    third = len(losses) // 3
    assert sum(losses[-third:]) < sum(losses[:third])
    # Alone against what was lost is not the same as the KL, but here it lowers it.
    assert outcome.after.memory.kl < outcome.before.memory.kl
    assert outcome.after.window == outcome.before.window
    assert [step.number for step in steps] == list(range(1, 25))
    assert steps[-1].progress == 1


def test_a_run_in_bf16_learns_too() -> None:
    model = make_model(dtype=torch.bfloat16)
    config = make_config(stage="kl", steps=24, lr=3e-2)
    outcome = distill(model, make_rows(), make_held_out(), config)
    assert outcome.after.memory.kl < outcome.before.memory.kl


@pytest.mark.parametrize("accumulate", [1, 4])
def test_accumulating_is_a_larger_batch(accumulate: int) -> None:
    """Also where some micro-batches have fewer positions that count than others."""
    whole: list[Step] = []
    parts: list[Step] = []
    config = {"stage": "kl", "steps": 3, "random": None}
    model = make_model(dtype=torch.float32)
    distill(
        model, make_rows(), make_held_out(1), make_config(batch=4, **config), on_step=whole.append
    )
    model = make_model(dtype=torch.float32)
    split = make_config(batch=4 // accumulate, accumulate=accumulate, **config)
    distill(model, make_rows(), make_held_out(1), split, on_step=parts.append)
    for one, other in zip(whole, parts, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-5)
        assert one.gradient == pytest.approx(other.gradient, rel=1e-4)


def test_alpha_starts_where_it_is_told_unless_it_has_left_zero() -> None:
    model = make_model(dtype=torch.float32, random=False)
    learned, fresh = model.mixers()
    with torch.no_grad():
        learned.alpha[0] = 0.25
    config = make_config(stage="kl", steps=1, kl_lr=1e-6, alpha_start=0.5)
    outcome = distill(model, make_rows(), make_held_out(1), config)
    assert float(learned.alpha[0].detach()) == pytest.approx(0.25, abs=1e-4)
    assert learned.alpha[1:].abs().max() < 1e-4
    assert torch.allclose(fresh.alpha, torch.tensor(0.5), atol=1e-4)
    assert outcome.after.memory.kl != outcome.before.memory.kl


@pytest.mark.parametrize("window", [None, WindowConfig(W + 3, S + 1)])
def test_comparing_is_what_the_logits_say(window: WindowConfig | None) -> None:
    model = make_model()
    ids = make_text(3 * T).view(3, T)
    found = compare(model, [plain_row(row) for row in ids], window=window)
    first = W if window is None else window.window

    def predicted(full_attention: bool = False) -> Tensor:
        how: dict[str, Any] = (
            {"full_attention": True}
            if full_attention
            else {"past_key_values": AllMemCache(model.config, window)}
        )
        return model(ids, use_cache=not full_attention, **how).logits.log_softmax(-1)[:, first:-1]

    with torch.no_grad():
        teacher, memory = predicted(full_attention=True), predicted()
        with without_memory(model):
            alone = predicted()
    targets = ids[:, first + 1 :, None]
    for score, logits in ((found.teacher, teacher), (found.window, alone), (found.memory, memory)):
        assert score.loss == pytest.approx(float(-logits.gather(2, targets).mean()))
        kl = (teacher.exp() * (teacher - logits)).sum(-1).mean()
        assert score.kl == pytest.approx(float(kl), abs=1e-12)
    assert found.positions == 3 * (T - first - 1)
    # The memories are back in their places.
    assert all(mixed.memory is not None for mixed in model.mixers())


def test_the_control_reads_a_memory_that_stays_as_it_began() -> None:
    model = make_model()
    ids = make_text(2 * T).view(2, T)
    before = {name: p.detach().clone() for name, p in model.memory_parameters().items()}
    rows = [plain_row(row) for row in ids]
    found = compare(model, rows, control=True)
    assert all(torch.equal(p, before[name]) for name, p in model.memory_parameters().items())
    with torch.no_grad():
        for name, parameter in model.memory_parameters().items():
            if ".eta." in name:
                parameter.fill_(0 if "weight" in name else -1e9)
    assert found.unwritten == compare(model, rows).memory != found.memory


def test_a_budget_in_minutes_ends_the_run() -> None:
    steps: list[Step] = []
    config = make_config(steps=None, minutes=0.03)
    model = make_model(dtype=torch.float32)
    distill(model, make_rows(), make_held_out(2), config, on_step=steps.append)
    assert steps[-1].progress == 1
    assert {step.stage for step in steps} == {"solve", "match", "kl"}


def test_a_budget_in_tokens_is_so_many_steps() -> None:
    steps: list[Step] = []
    config = make_config(steps=None, tokens=7 * 2 * T, stage="kl")
    model = make_model(dtype=torch.float32)
    outcome = distill(model, make_rows(), make_held_out(2), config, on_step=steps.append)
    assert len(steps) == 7
    assert outcome.tokens == steps[-1].tokens == 7 * 2 * T


@pytest.mark.parametrize("stage", ["match", "kl"])
def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_batch(
    stage: str, tmp_path: Path
) -> None:
    model = make_model(dtype=torch.float32)
    config = make_config(stage=stage, checkpoint_steps=2)

    def spoil(step: Step) -> None:
        if step.number == 5:
            with torch.no_grad():
                next(iter(model.memory_parameters().values())).fill_(float("nan"))

    with pytest.raises(AllMemError, match=rf"step 6 \({stage}\): the loss is nan.*batch is in"):
        distill(model, make_rows(), make_held_out(2), config, tmp_path, on_step=spoil)
    folder = tmp_path / f"1-{stage}"
    tensors, header = read_tensors(folder / "broken_step_6_process_0.safetensors", "batch")
    assert tensors["0.input_ids"].shape == (2, T)
    assert header["step"] == 6
    again = load_adapter(make_model(dtype=torch.float32), folder / "checkpoint-4" / ADAPTER)
    assert all(p.isfinite().all() for p in again.memory_parameters().values())


def test_a_full_disk_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(dtype=torch.float32)
    config = make_config(checkpoint_steps=2, stage="kl")

    def fill(step: Step) -> None:
        if step.number == 3:

            def full(descriptor: int) -> None:
                raise OSError(errno.ENOSPC, "No space left on device")

            monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(AllMemError, match="No space left on device"):
        distill(model, make_rows(), make_held_out(2), config, tmp_path, on_step=fill)
    assert [p.name for p in (tmp_path / "1-kl").iterdir()] == ["checkpoint-2"]
    load_adapter(make_model(dtype=torch.float32), tmp_path / "1-kl" / "checkpoint-2" / ADAPTER)


def test_sequences_within_the_window_are_an_error() -> None:
    with pytest.raises(AllMemError, match=f"length = {W} does not reach beyond window = {W}"):
        distill(make_model(), make_rows(length=W), make_held_out(2), make_config())


def test_a_model_without_memories_is_an_error() -> None:
    with pytest.raises(AllMemError, match="no layer of this model has a memory"):
        distill(make_model(mixers="window"), make_rows(), make_held_out(2), make_config(stage="kl"))


def test_a_run_writes_its_figures_and_keeps_those_from_before(tmp_path: Path) -> None:
    config = make_config()
    first = distill(
        make_model(dtype=torch.float32), make_rows(), make_held_out(2), config, tmp_path
    )
    again = distill(
        make_model(dtype=torch.float32), make_rows(), make_held_out(2), config, tmp_path
    )
    assert again.before == first.before != first.after
    assert again.after == first.after
    names = {"1-solve", "2-match", "3-kl", "adapter.safetensors", "results.json", "run.json"}
    assert {p.name for p in tmp_path.iterdir()} == names


def test_a_folder_with_a_run_is_not_started_over(tmp_path: Path) -> None:
    with pytest.raises(AllMemError, match="to resume from"):
        prepare_folder(str(tmp_path), resume=True)
    (tmp_path / RUN).write_text("{}")
    with pytest.raises(AllMemError, match="holds a run already"):
        prepare_folder(str(tmp_path), resume=False)
    assert prepare_folder(str(tmp_path), resume=True) == tmp_path


def test_older_checkpoints_are_removed(tmp_path: Path) -> None:
    config = make_config(stage="kl", checkpoint_steps=2, keep_checkpoints=2)
    distill(make_model(dtype=torch.float32), make_rows(), make_held_out(2), config, tmp_path)
    kept = {p.name for p in (tmp_path / "1-kl").glob("checkpoint-*")}
    assert kept == {"checkpoint-10", "checkpoint-12"}


def test_sizes_are_drawn_and_the_run_goes_on_with_them(tmp_path: Path) -> None:
    random = RandomSizes(windows=(4, 8, 16), sinks=(0, 1, 2), chunks=(1, 2, 4, 8))
    fixed: list[Step] = []
    drawn: list[Step] = []
    for steps, sizes in ((fixed, None), (drawn, random)):
        model = make_model(dtype=torch.float32)
        config = make_config(stage="kl", random=sizes)
        distill(model, make_rows(), make_held_out(1), config, on_step=steps.append)
    assert all(one.loss != other.loss for one, other in zip(fixed, drawn, strict=True))
    # What was drawn is in the log.
    config = make_config(stage="kl", random=random, steps=4)
    distill(make_model(dtype=torch.float32), make_rows(), make_held_out(1), config, tmp_path)
    state = json.loads((tmp_path / "1-kl" / "checkpoint-4" / "trainer_state.json").read_text())
    logged = [(e["window"], e["sinks"], e["chunk"]) for e in state["log_history"] if "window" in e]
    expected = [random.draw(step, config.seed) for step in range(4)]
    assert logged == [(s.window, s.sinks, s.chunk) for s in expected]


def test_what_is_logged_reaches_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = make_config(stage="kl", steps=3, report_to=("tensorboard",))
    distill(make_model(dtype=torch.float32), make_rows(), make_held_out(1), config, tmp_path)
    (events,) = (tmp_path / "1-kl").rglob("events.out.*")
    found = EventAccumulator(str(events.parent)).Reload()
    names = set(found.Tags()["scalars"])
    wanted = {"loss", "divergence", "alpha", "eta", "tokens_per_second", "grad_norm"}
    assert {f"train/{name}" for name in wanted} <= names
