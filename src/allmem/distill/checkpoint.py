"""What a stage needs to go on as if it had never stopped: a folder of safetensors and JSON.

    checkpoint-120/adapter.safetensors      the slow weights, in fp32; an adapter like any other
                   optimizer.safetensors    AdamW's moments by parameter, the schedule's place
                   trainer_state.json       transformers' own
                   process-0.safetensors    random state, and the state to begin the next step from
                   global_step120/          DeepSpeed's shards in place of the optimizer's file

A folder is renamed when complete, so a run that is killed while it writes goes on from the one
before.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from allmem.errors import AllMemError
from allmem.files import read_tensors, write_tensors
from allmem.sharded import full_tensor, like

if TYPE_CHECKING:
    from allmem.distill.trainer import StageTrainer

__all__ = [
    "STATE",
    "last_checkpoint",
    "load_process",
    "load_training",
    "remove_old_checkpoints",
    "save_process",
    "save_training",
]

STATE = "trainer_state.json"
OPTIMIZER = "optimizer.safetensors"


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a stage's folder, the oldest first."""
    found = [p for p in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)]
    return sorted(found, key=lambda p: int(p.name.rpartition("-")[2]))


def last_checkpoint(folder: Path) -> Path | None:
    """The newest one, if there is any."""
    return next(reversed(checkpoints(folder)), None)


def remove_old_checkpoints(folder: Path, keep: int) -> None:
    """All but the newest ``keep``."""
    for path in checkpoints(folder)[:-keep]:
        shutil.rmtree(path)


def save_training(folder: Path, trainer: StageTrainer, lead: bool) -> None:
    """Write moments and schedule. Every process must call; ``lead`` writes."""
    if trainer.is_deepspeed_enabled:
        trainer.model_wrapped.save_checkpoint(str(folder))
        return
    optimizer = _bare(trainer.optimizer)
    tensors = {
        f"{name}.{key}": full_tensor(value).cpu()
        for name, parameter in _named(optimizer)
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    if lead:
        scheduler = trainer.lr_scheduler
        assert scheduler is not None
        header = {"epoch": scheduler.last_epoch, "rates": scheduler.get_last_lr()}
        write_tensors(folder / OPTIMIZER, "optimizer", tensors, header)


def load_training(folder: Path, trainer: StageTrainer) -> None:
    """Give a new optimiser and schedule over the same parameters what ``save_training`` wrote.

    Raises:
        AllMemError: if the file is damaged or was written for other parameters.
    """
    scheduler = trainer.lr_scheduler
    assert scheduler is not None
    if trainer.is_deepspeed_enabled:
        # The engine has loaded its shards itself; the schedule is a function of the step.
        for _ in range(trainer.state.global_step - scheduler.last_epoch):
            scheduler.step()
        return
    tensors, header = read_tensors(folder / OPTIMIZER, "optimizer")
    optimizer = _bare(trainer.optimizer)
    named = dict(_named(optimizer))
    for key, tensor in tensors.items():
        name, _, moment = key.rpartition(".")
        if name not in named:
            raise AllMemError(f"{folder / OPTIMIZER} is for another model: it knows {name}")
        parameter = named[name]
        placed = tensor if moment == "step" else like(tensor, parameter)
        optimizer.state[parameter][moment] = placed
    scheduler.last_epoch = header["epoch"]
    scheduler._last_lr = header["rates"]
    for group, rate in zip(optimizer.param_groups, header["rates"], strict=True):
        group["lr"] = rate


def save_process(folder: Path, process: int, passed: dict[str, Tensor]) -> None:
    """Write what is a process's own."""
    tensors = {f"passed.{name}": t.contiguous().cpu() for name, t in passed.items()}
    tensors["random"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random_cuda"] = torch.cuda.get_rng_state()
    write_tensors(folder / f"process-{process}.safetensors", "process", tensors, {})


def load_process(folder: Path, process: int) -> dict[str, Tensor]:
    """Take over a process's random state; returns its passed state.

    A run that goes on with more processes has none for the new ones; they begin afresh.
    """
    path = folder / f"process-{process}.safetensors"
    if not path.is_file():
        return {}
    tensors, _ = read_tensors(path, "process")
    torch.set_rng_state(tensors["random"])
    if torch.cuda.is_available() and "random_cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random_cuda"])
    return {n.removeprefix("passed."): t for n, t in tensors.items() if n.startswith("passed.")}


def _bare(optimizer: Any) -> torch.optim.Optimizer:
    """The optimiser inside accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)


def _named(optimizer: torch.optim.Optimizer) -> list[tuple[str, Tensor]]:
    return [
        pair
        for group in optimizer.param_groups
        for pair in zip(group["names"], group["params"], strict=True)
    ]
