"""A run that was killed goes on as if nothing had happened."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from allmem.distill.trainer import ADAPTER, CHECKPOINT, Step, Trainer
from allmem.errors import AllMemError
from allmem.models.adapter import load_adapter
from tests.distill.interrupted import main
from tests.distill.tiny import make_config, make_model, make_sequences

ROOT = Path(__file__).parents[2]


def start(folder: Path, losses: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.distill.interrupted", str(folder), str(losses)]
    return subprocess.Popen([*command, *options], cwd=ROOT)


def lines(losses: Path) -> list[str]:
    """Whole lines; the last one may be cut off."""
    return losses.read_text().split("\n")[:-1] if losses.exists() else []


def wait_for(losses: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while len(lines(losses)) < count:
        assert process.poll() is None, "the run ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.timeout(300)
def test_a_killed_run_gives_the_losses_of_one_that_was_not(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole.txt", tmp_path / "killed.txt"
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    main(str(tmp_path / "a"), str(whole), resume=False)
    process = start(tmp_path / "b", killed)
    # Of twelve steps.
    wait_for(killed, 6, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    # The last line may be cut off; a step whose checkpoint was not written is taken again.
    killed.write_text("".join(f"{line}\n" for line in lines(killed)))
    assert start(tmp_path / "b", killed, "--resume").wait() == 0
    again: dict[str, set[str]] = {}
    for line in lines(killed):
        again.setdefault(line.split()[0], set()).add(line)
    assert all(len(same) == 1 for same in again.values())
    assert [line for same in again.values() for line in same] == lines(whole)
    parts = [load_adapter(make_model(dtype=torch.float32), tmp_path / f / ADAPTER) for f in "ab"]
    for one, other in zip(*(m.memory_parameters().values() for m in parts), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("stop", range(1, 12))
def test_resuming_after_any_step_gives_the_same_losses(stop: int, tmp_path: Path) -> None:
    def losses(trainer: Trainer) -> list[tuple[int, float]]:
        found: list[tuple[int, float]] = []

        def note(step: Step) -> None:
            found.append((step.number, step.loss))

        trainer.run(note)
        return found

    class StoppedError(Exception):
        pass

    def stop_there(step: Step) -> None:
        if step.number > stop:
            raise StoppedError

    config = make_config(checkpoint_steps=stop)
    whole = losses(Trainer(make_model(random=False), make_sequences(), config))
    interrupted = Trainer(make_model(random=False), make_sequences(), config, tmp_path)
    with pytest.raises(StoppedError):
        interrupted.run(stop_there)
    # The model that goes on knows nothing of what was trained.
    resumed = Trainer(make_model(seed=0), make_sequences(), config, tmp_path, resume=True)
    assert losses(resumed) == whole[stop:]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"lr": 1e-2}, "lr = 0.003, now it is 0.01"),
        ({"seed": 4}, "seed = 0, now it is 4"),
        ({"stage": "kl"}, "stage = 'all', now it is 'kl'"),
    ],
)
def test_resuming_with_another_configuration_is_an_error(
    changed: dict[str, object], named: str, tmp_path: Path
) -> None:
    Trainer(make_model(), make_sequences(), make_config(), tmp_path).save()
    with pytest.raises(AllMemError, match=named):
        Trainer(make_model(), make_sequences(), make_config(**changed), tmp_path, resume=True)


def test_resuming_on_another_text_or_model_is_an_error(tmp_path: Path) -> None:
    Trainer(make_model(), make_sequences(), make_config(), tmp_path).save()
    with pytest.raises(AllMemError, match="text = "):
        Trainer(make_model(), make_sequences(seed=9), make_config(), tmp_path, resume=True)
    other = make_model(seed=1)
    with pytest.raises(AllMemError, match="base model = "):
        Trainer(other, make_sequences(), make_config(), tmp_path, resume=True)
    other = make_model(memory={"width": 5})
    with pytest.raises(AllMemError, match="mixer_options = "):
        Trainer(other, make_sequences(), make_config(), tmp_path, resume=True)


def test_a_damaged_checkpoint_is_an_error(tmp_path: Path) -> None:
    Trainer(make_model(), make_sequences(), make_config(), tmp_path).save()
    file = tmp_path / CHECKPOINT
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(AllMemError, match="truncated"):
        Trainer(make_model(), make_sequences(), make_config(), tmp_path, resume=True)
