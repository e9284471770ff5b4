"""What is measured of a trained model: recall, held-out rows, tasks of ``allmem evaluate``."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from allmem.arena.config import ArenaConfig
from allmem.arena.figures import Figure
from allmem.arena.recall import answer, asked
from allmem.config import WindowConfig
from allmem.data.labels import IGNORED
from allmem.data.recall import RecallTask
from allmem.distill.evaluate import compare
from allmem.distill.rows import Row, counted
from allmem.evaluation.catalog import find_tasks
from allmem.evaluation.local import LocalModel
from allmem.evaluation.opening import local_models
from allmem.evaluation.rows import Run
from allmem.evaluation.runner import evaluate
from allmem.evaluation.scores import score_rows
from allmem.evaluation.sizes import Sizes, parse_sizes
from allmem.evaluation.task import Setting, Task
from allmem.mixers.compacting import CompactingMixer
from allmem.mixers.several import SeveralMixer
from allmem.models.modeling import AllMemForCausalLM
from allmem.opening import OpenedModel

__all__ = ["held_out_figures", "reading_speed", "recall_figures", "router_load", "task_figures"]

TIMED = 3
"""Readings, after one to warm up."""


def recall_figures(model: AllMemForCausalLM, arena: ArenaConfig, task: RecallTask) -> list[Figure]:
    """Right answers and KL, by sequence."""
    ids, answers = asked(task, arena.evaluation.sequences)
    questions = answers != IGNORED
    far = questions & ~task.within(ids, arena.sizes.window)
    own = answer(model, ids, answers, compare=True)
    found = [
        _by_row("right answers", own.right, questions),
        _by_row("right answers beyond the window", own.right, far),
        dataclasses.replace(
            _by_row("KL from the teacher", own.kl, questions), unit="nats", higher_is_better=False
        ),
    ]
    for name, sizes in _grid(model, arena).items():
        window = WindowConfig(sizes.window, sizes.sinks)
        other = answer(model, ids, answers, window, sizes.chunk)
        found.append(_by_row(f"right answers at {name}", other.right, questions))
    return found


def _grid(model: AllMemForCausalLM, arena: ArenaConfig) -> dict[str, Sizes]:
    """Other sizes for a model, by how the arena names them."""
    own = model.config.chunk
    attentions = [mixed.attention for mixed in model.mixers()]
    # A cache whose slots were solved for keeps them whatever the window.
    fixed = any(isinstance(a, CompactingMixer) and a.options.slots for a in attentions)
    if fixed or model.config.window != arena.sizes.window:
        return {}
    named = {name: parse_sizes(name) for name in arena.evaluation.grid}
    return {
        name: dataclasses.replace(
            sizes, chunk=None if own is None else sizes.chunk or min(own, sizes.window)
        )
        for name, sizes in named.items()
    }


def _by_row(name: str, values: torch.Tensor, where: torch.Tensor) -> Figure:
    """Of values [B, T] at the places that count."""
    sums = torch.where(where, values, 0).double().sum(1)
    return Figure(name, sums.tolist(), where.sum(1).tolist())


def held_out_figures(
    model: AllMemForCausalLM, rows: Sequence[Row], window: int, kind: str
) -> list[Figure]:
    """Of rows whose labels are ``facts``, ``prose`` or ``text``: right tokens and KL beyond the
    window, by row. Nothing of what has no label there.

    Args:
        window: tokens up to which nothing counts.
    """
    parts: dict[str, list[float]] = {"accuracy": [], "kl": []}
    weights: list[float] = []
    for row in rows:
        labels = counted(row["labels"], row["position_ids"], window)
        if not bool((labels != IGNORED).any()):
            continue
        found = compare(model, [{**row, "labels": labels}], beyond=False)
        weights.append(float(found.positions))
        for name, values in parts.items():
            values.append(found.positions * float(getattr(found.memory, name)))
    if not weights:
        return []
    right = Figure("digits of held-out facts", parts["accuracy"], weights)
    kl = Figure(f"KL on held-out {kind}", parts["kl"], weights, "nats", False)
    return [right, kl] if kind == "facts" else [kl]


def task_figures(opened: OpenedModel, arena: ArenaConfig, folder: Path) -> list[Figure]:
    """The first metric of every task, by question; read with the grid's sizes too.

    Args:
        folder: of the run of ``allmem evaluate`` that is made.
    """
    tasks, _ = find_tasks(arena.evaluation.tasks)
    models = [LocalModel(opened, "as trained")]
    grid = _grid(opened.model, arena)
    models += local_models(opened, "read", sizes=list(grid.values())) if grid else []
    sizes, chosen = arena.sizes, arena.evaluation
    setting = Setting(
        lengths=chosen.lengths,
        limit=chosen.limit,
        quick=chosen.quick,
        # The same questions for everybody, whatever they see.
        beyond=sizes.window + sizes.sinks,
        sinks=sizes.sinks,
        chunk=sizes.steps,
    )
    run = evaluate(models, tasks, setting, folder, batch=chosen.batch)
    return [
        _of_task(run, model.label, task, where)
        for task in tasks
        for model, where in zip(models, ["", *(f" at {name}" for name in grid)], strict=True)
    ]


def _of_task(run: Run, label: str, task: Task, where: str) -> Figure:
    sums: dict[str, list[float]] = {}
    for one in score_rows(task, run.rows(label, task.name).rows()):
        for part in one.parts:
            if task.metric in part.scores:
                question = sums.setdefault(one.question, [0.0, 0.0])
                question[0] += part.weight * part.scores[task.metric]
                question[1] += part.weight
    order = sorted(sums)
    return Figure(
        f"{task.name}: {task.metric}{where}",
        [sums[question][0] for question in order],
        [sums[question][1] for question in order],
        "%" if task.scale == 100 else "",
        task.higher_is_better,
    )


@contextmanager
def router_load(model: AllMemForCausalLM) -> Iterator[dict[str, list[float]]]:
    """The share of all writes that every part of a routed memory got, by layer; known at the end
    of the block, of all that the model read in it."""
    shares: dict[str, list[float]] = {}
    sums: dict[str, torch.Tensor] = {}

    def add(layer: str, mixer: SeveralMixer, inputs: tuple[Any, ...]) -> None:
        x, _, layout = inputs[:3]
        tokens = layout.lengths.sum() if len(x) else 0
        if tokens:
            load = tokens * mixer.router_load(x, layout).cpu()
            sums[layer] = sums.get(layer, torch.zeros_like(load)) + load

    with ExitStack() as hooks:
        for mixed in model.mixers():
            memory = mixed.memory
            if isinstance(memory, SeveralMixer) and memory.options.route == "topk":
                handle = memory.register_forward_pre_hook(partial(add, str(mixed.layer)))
                hooks.callback(handle.remove)
        yield shares
    shares.update({layer: (load / load.sum()).tolist() for layer, load in sums.items()})


@torch.no_grad()
def reading_speed(model: AllMemForCausalLM, length: int) -> float:
    """Tokens a second of reading one text in one go, the median of a few."""
    generator = torch.Generator().manual_seed(0)
    words: Any = model.get_input_embeddings()
    ids = torch.randint(words.num_embeddings, (1, length), generator=generator).to(model.device)
    seconds = []
    for _ in range(TIMED + 1):
        begun = time.perf_counter()
        model(ids, logits_to_keep=1)
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        seconds.append(time.perf_counter() - begun)
    return length / statistics.median(seconds[1:])
