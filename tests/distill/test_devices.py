"""Two processes on a CPU learn what one learns: DDP, FSDP2 and ZeRO-2."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from allmem.distill.trainer import ADAPTER
from allmem.models.adapter import load_adapter
from tests.distill.several import main
from tests.distill.tiny import make_model

ROOT = Path(__file__).parents[2]
PROCESSES = 2

zero = pytest.param(
    "zero",
    marks=[
        # It compiles its communication on CPUs first, for minutes.
        pytest.mark.slow,
        pytest.mark.timeout(900),
        pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs allmem[deepspeed]"),
    ],
)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("alone")
    found = {}
    for stages in ("kl", "all"):
        (folder / stages).mkdir()
        file = folder / f"{stages}.json"
        main("ddp-all" if stages == "all" else "ddp", str(folder / stages), str(file), processes=1)
        found[stages] = json.loads(file.read_text()) | {"folder": folder / stages}
    return found


def launch(strategy: str, folder: Path, port: int) -> dict[str, Any]:
    losses = folder.with_suffix(".json")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(PROCESSES)]
    command = ["--master-port", str(port), "-m", "tests.distill.several", strategy]
    done = subprocess.run(
        [*launcher, *command, str(folder), str(losses)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(losses.read_text())


@pytest.mark.timeout(300)
@pytest.mark.parametrize("strategy", ["ddp", "ddp-all", "fsdp", zero])
def test_two_processes_learn_what_one_learns(
    strategy: str, alone: dict[str, Any], tmp_path: Path, unused_tcp_port: int
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    found = launch(strategy, folder, unused_tcp_port)
    expected = alone["all" if strategy == "ddp-all" else "kl"]
    assert len(found["steps"]) == len(expected["steps"])
    for one, other in zip(found["steps"], expected["steps"], strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    assert found["after"] == pytest.approx(expected["after"], rel=1e-4)
    weights = [
        load_adapter(make_model(dtype=torch.float32), place / ADAPTER).memory_parameters()
        for place in (folder, expected["folder"])
    ]
    for name, parameter in weights[0].items():
        torch.testing.assert_close(parameter, weights[1][name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", zero])
def test_a_run_of_two_processes_goes_on(
    strategy: str, tmp_path: Path, unused_tcp_port: int
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    whole = launch(strategy, folder, unused_tcp_port)
    # Back to the middle, as if it had been stopped there.
    shutil.rmtree(folder / "1-kl" / "checkpoint-6")
    (folder / ADAPTER).unlink()
    rest = launch(strategy, folder, unused_tcp_port)
    assert rest["steps"] == whole["steps"][3:]


@pytest.fixture
def unused_tcp_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
