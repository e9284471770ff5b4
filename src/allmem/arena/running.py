"""One job: the teacher is converted, the memories are distilled, what came of it is measured."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from typing import Any

import torch

from allmem.arena.config import ArenaConfig
from allmem.arena.figures import Figure
from allmem.arena.jobs import EVALUATION, TRAINING, Job, write_job, write_json
from allmem.arena.measuring import (
    held_out_figures,
    reading_speed,
    recall_figures,
    router_load,
    task_figures,
)
from allmem.arena.own_mixers import import_modules
from allmem.arena.recall import SEED_STRIDE, RecallRows, asked
from allmem.data.labels import IGNORED
from allmem.distill.calibrating import check_calibrates
from allmem.distill.config import DistillConfig
from allmem.distill.launch import read_rows
from allmem.distill.matching import has_unit
from allmem.distill.progress import Step
from allmem.distill.recipe import DataSource
from allmem.distill.rows import Row, Rows, digest
from allmem.distill.run import distill
from allmem.distill.trainer import DivergedError
from allmem.errors import AllMemError
from allmem.evaluation.checks import locked
from allmem.machine import made_with
from allmem.models.adapter import ADAPTER, load_weights
from allmem.models.conversion import convert
from allmem.models.fingerprint import fingerprint
from allmem.models.modeling import AllMemForCausalLM
from allmem.models.sources import load_base
from allmem.opening import OpenedModel, find_device, open_base, resolve

__all__ = ["longest_row", "run_job"]

HELD_OUT_SEED = 0
"""Of the rows that all are judged by, whatever the seed of their training."""
WATCHED = 2
"""Held-out rows that a training is compared on by itself; the figures are measured afterwards."""
RUN, TASKS = "training", "tasks"
"""Folders of a job."""

Judged = dict[str, list[Row]]
"""Held-out rows by what their labels are: digits of ``facts``, the ``prose`` between them,
``text``; of ``recall`` a few to watch the training by."""


def run_job(job: Job, on_step: Callable[[Step], None] | None = None) -> None:
    """Train and measure what is not there yet.

    Raises:
        AllMemError: if the job's folder holds another one, another process is at it, or anything is
            missing. Training that breaks down is no error but a result.
    """
    import_modules(job.arena)
    folder = write_job(job)
    with locked(folder):
        trained, evaluated = job.trained(), job.evaluated()
        if trained is not None and (trained["diverged"] or evaluated is not None):
            return
        opened, weights = _open(job)
        rows, judged = _rows(job, opened)
        if trained is None:
            watched = next(iter(judged.values()))[:WATCHED]
            trained = _train(job, opened.model, rows, watched, on_step)
            trained = {
                "identity": job.training_identity(),
                "made_with": made_with(opened.model.device),
                "base": weights,
                **trained,
            }
            write_json(folder / TRAINING, trained)
        elif job.seed is not None and not trained["diverged"]:
            load_weights(opened.model, folder / ADAPTER)
        if trained["diverged"]:
            return
        # What training kept to go on with, and the answers of an evaluation that was another.
        for name in (RUN, TASKS):
            shutil.rmtree(folder / name, ignore_errors=True)
        with router_load(opened.model) as load:
            figures = _figures(job, opened, judged)
        write_json(
            folder / EVALUATION,
            {
                "identity": job.evaluation_identity(),
                "made_with": made_with(opened.model.device),
                "asked": _asked(job, judged),
                "figures": [figure.to_dict() for figure in figures],
                "router_load": load,
                "pace": reading_speed(opened.model, job.length),
            },
        )


def longest_row(arena: ArenaConfig) -> int:
    """Tokens of the longest row of an arena whose rows have to be looked at.

    Raises:
        AllMemError: as ``run_job``, about the teacher and the data.
    """
    assert arena.data is not None
    sizes = arena.sizes
    base, tokenizer = open_base(arena.teacher, dtype=arena.dtype, device="cpu")
    model = convert(base, window=sizes.window, sinks=sizes.sinks, mixers="window", check=False)
    opened = OpenedModel(model, tokenizer)
    return read_rows(arena.data, opened, arena.training, sizes.window)[0].longest


def _open(job: Job) -> tuple[OpenedModel, str]:
    """The teacher, converted, and the fingerprint of its weights."""
    arena = job.arena
    if arena.recall is None:
        base, tokenizer = open_base(arena.teacher, dtype=arena.dtype, device=arena.device)
    else:
        options = {} if arena.dtype is None else {"dtype": arena.dtype}
        base, tokenizer = load_base(resolve(arena.teacher), **options), None
        base = base.to(find_device(arena.device))
        words = base.get_input_embeddings().num_embeddings
        if words < arena.recall.vocab_size:
            raise AllMemError(
                f"the teacher {arena.teacher} knows {words} words, recall needs "
                f"{arena.recall.vocab_size}: give it a smaller vocabulary"
            )
    if isinstance(base, AllMemForCausalLM):
        raise AllMemError(f"the teacher {arena.teacher} is converted; name the original model")
    weights = fingerprint(dict(base.named_parameters()))
    model = convert(base, **job.conversion.arguments(), seed=job.seed or 0)
    model.config.base_source = arena.teacher
    return OpenedModel(model.to(base.device).eval(), tokenizer), weights


def _rows(job: Job, opened: OpenedModel) -> tuple[Rows, Judged]:
    """Training rows of the job's seed, and held-out ones that are the same for all."""
    arena = job.arena
    if arena.recall is not None:
        unseen = RecallRows(arena.recall, HELD_OUT_SEED).read(SEED_STRIDE - WATCHED)
        watched = [next(unseen) for _ in range(WATCHED)]
        return RecallRows(arena.recall, job.seed or 0), {"recall": watched}
    assert arena.data is not None

    def read(data: DataSource, seed: int) -> tuple[Rows, list[Row]]:
        training = dataclasses.replace(arena.training, seed=seed)
        return read_rows(data, opened, training, arena.sizes.window)

    rows = read(arena.data, job.seed or 0)[0]
    facts = arena.data.facts
    if facts is None:
        return rows, {"text": read(arena.data, HELD_OUT_SEED)[1]}
    digits, both = (
        read(
            dataclasses.replace(arena.data, facts=dataclasses.replace(facts, learn_prose=prose)),
            HELD_OUT_SEED,
        )[1]
        for prose in (False, True)
    )
    between = [
        {**row, "labels": torch.where(digit["labels"] == IGNORED, row["labels"], IGNORED)}
        for digit, row in zip(digits, both, strict=True)
    ]
    return rows, {"facts": digits, "prose": between}


def _train(
    job: Job,
    model: AllMemForCausalLM,
    rows: Rows,
    watched: list[Row],
    on_step: Callable[[Step], None] | None,
) -> dict[str, Any]:
    """Distil, unless there is nothing to; go on with what was begun."""
    if job.seed is None:
        return {"diverged": ""}
    config = _training(job, model, rows)
    run = job.folder / RUN
    run.mkdir(exist_ok=True)
    pace = 0.0

    def note(step: Step) -> None:
        nonlocal pace
        pace = step.tokens_per_second
        if on_step is not None:
            on_step(step)

    try:
        outcome = distill(model, rows, watched, config, run, on_step=note)
    except DivergedError as error:
        return {"diverged": str(error)}
    (run / ADAPTER).replace(job.folder / ADAPTER)
    return {
        "diverged": "",
        "tokens": outcome.tokens,
        "rows": rows.fingerprint(),
        "pace": pace,
        "stages": [span.stage for span in config.spans(100)],
    }


def _training(job: Job, model: AllMemForCausalLM, rows: Rows) -> DistillConfig:
    """With the job's seed; a memory that lacks a special stage has its steps in the others."""
    config = dataclasses.replace(job.arena.training, seed=job.seed or 0)
    if config.stage in ("all", "solve") and not any(map(has_unit, model.mixers())):
        config = dataclasses.replace(config, stage="kl")
    more = config.calibrate_steps
    if not more or _calibrates(model):
        return config
    steps = None if config.steps is None else config.steps + more
    tokens = config.tokens
    if tokens is not None:
        tokens += round(more * config.rows_per_step(1) * rows.mean)
    return dataclasses.replace(config, calibrate_steps=0, steps=steps, tokens=tokens)


def _calibrates(model: AllMemForCausalLM) -> bool:
    try:
        check_calibrates(model)
    except AllMemError:
        return False
    return True


def _asked(job: Job, judged: Judged) -> str:
    """What decides which questions were asked, but for those of ``evaluation.tasks``."""
    if job.arena.recall is not None:
        ids, answers = asked(job.arena.recall, job.arena.evaluation.sequences)
        return digest([{"input_ids": ids, "labels": answers}])
    return ", ".join(f"{kind} {digest(rows)}" for kind, rows in judged.items())


def _figures(job: Job, opened: OpenedModel, judged: Judged) -> list[Figure]:
    arena, model = job.arena, opened.model
    if arena.recall is not None:
        return recall_figures(model, arena, arena.recall)
    found = [
        figure
        for kind, rows in judged.items()
        for figure in held_out_figures(model, rows, arena.sizes.window, kind)
    ]
    if arena.evaluation.tasks:
        found += task_figures(opened, arena, job.folder / TASKS)
    return found
