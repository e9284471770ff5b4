"""A run that was killed goes on as if nothing had happened."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from allmem.distill import Step, distill
from allmem.distill.trainer import ADAPTER
from allmem.errors import AllMemError
from allmem.models.adapter import load_adapter
from tests.distill.interrupted import SETTINGS, main
from tests.distill.tiny import make_config, make_held_out, make_model, make_rows

ROOT = Path(__file__).parents[2]


def start(folder: Path, losses: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.distill.interrupted", str(folder), str(losses)]
    return subprocess.Popen(command, cwd=ROOT)


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
    main(str(tmp_path / "a"), str(whole))
    # Of twelve steps: in the stages solve, match and kl.
    for count in (2, 7, 10):
        process = start(tmp_path / "b", killed)
        wait_for(killed, count, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        # The last line may be cut off; a step whose checkpoint was not written is taken again.
        killed.write_text("".join(f"{line}\n" for line in lines(killed)))
    assert start(tmp_path / "b", killed).wait() == 0
    again: dict[str, set[str]] = {}
    for line in lines(killed):
        again.setdefault(line.split()[0], set()).add(line)
    assert all(len(same) == 1 for same in again.values())
    assert [line for same in again.values() for line in same] == lines(whole)
    parts = [load_adapter(make_model(dtype=torch.float32), tmp_path / f / ADAPTER) for f in "ab"]
    for one, other in zip(*(m.memory_parameters().values() for m in parts), strict=True):
        assert torch.equal(one, other)


def run(folder: Path | None, stop: int | None = None, **changes: Any) -> list[tuple[int, float]]:
    """Number and loss of the steps of a run, which may be stopped after one."""
    found: list[tuple[int, float]] = []

    class StoppedError(Exception):
        pass

    def note(step: Step) -> None:
        if step.number == stop:
            raise StoppedError
        found.append((step.number, step.loss))

    config = make_config(**{**SETTINGS, **changes})
    model = make_model(dtype=torch.float32, random=False)
    try:
        distill(model, make_rows(), make_held_out(1), config, folder, on_step=note)
    except StoppedError:
        # The step that was stopped is not in a checkpoint yet.
        return found
    return found


@pytest.fixture(scope="module")
def whole() -> list[tuple[int, float]]:
    return run(None)


@pytest.mark.parametrize("stop", [3, 5, 6, 9, 10, 12])
def test_resuming_after_any_step_gives_the_same_losses(
    stop: int, whole: list[tuple[int, float]], tmp_path: Path
) -> None:
    first = run(tmp_path, stop)
    rest = run(tmp_path)
    assert first == whole[: stop - 1]
    # The stage ``solve``, the first four steps, is taken again as a whole.
    assert rest == (whole if stop <= 4 else whole[stop - 1 :])


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"lr": 1e-2}, "lr = 0.003, now it is 0.01"),
        ({"seed": 4}, "seed = 0, now it is 4"),
        ({"stage": "kl"}, "stage = 'all', now it is 'kl'"),
        ({"random": None}, "random = {"),
    ],
)
def test_resuming_with_another_configuration_is_an_error(
    changed: dict[str, Any], named: str, tmp_path: Path
) -> None:
    run(tmp_path, stop=5)
    with pytest.raises(AllMemError, match=named):
        run(tmp_path, **changed)


def test_resuming_on_another_text_or_model_is_an_error(tmp_path: Path) -> None:
    run(tmp_path, stop=5)
    config, held_out = make_config(**SETTINGS), make_held_out(1)
    model = make_model(dtype=torch.float32, random=False)
    with pytest.raises(AllMemError, match="data = "):
        distill(model, make_rows(seed=9), held_out, config, tmp_path)
    with pytest.raises(AllMemError, match="base model = "):
        distill(make_model(seed=1), make_rows(), held_out, config, tmp_path)
    with pytest.raises(AllMemError, match="mixer_options = "):
        distill(make_model(memory={"width": 5}), make_rows(), held_out, config, tmp_path)


def test_a_damaged_checkpoint_is_an_error(tmp_path: Path) -> None:
    run(tmp_path, stop=8)
    for name in (ADAPTER, "optimizer.safetensors"):
        (file,) = (tmp_path / "2-match").glob(f"checkpoint-*/{name}")
        whole = file.read_bytes()
        file.write_bytes(whole[:-100])
        with pytest.raises(AllMemError, match="truncated"):
            run(tmp_path)
        file.write_bytes(whole)
    run(tmp_path)
