"""A whole distillation: rows in, adapter and figures out.

Compares before and after on what was held out, trains the stages in between. The files of a run lie
in one folder:

    run.json               what a resumed run must agree on, and how many steps each stage has
    1-solve/ 2-kl/ ...     the checkpoints of each stage
    results.json           the figures before and after
    adapter.safetensors    the trained memories
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast
from torch import Tensor
from transformers.integrations import get_reporting_integration_callbacks

from allmem.data.labels import IGNORED
from allmem.distill.calibrating import Calibrator, check_calibrates
from allmem.distill.checkpoint import last_checkpoint
from allmem.distill.config import DistillConfig, Span
from allmem.distill.distillation import Distillation
from allmem.distill.evaluate import Comparison, check_reaches_beyond, compare
from allmem.distill.matching import has_unit, trains
from allmem.distill.precision import computing, training_weights
from allmem.distill.progress import Place, Step, measure
from allmem.distill.rows import Batches, Row, Rows, own_sizes
from allmem.distill.run_files import (
    essence,
    saved_before,
    saved_plan,
    write_plan,
    write_results,
)
from allmem.distill.solving import ReadoutSolver
from allmem.distill.teacher import Teacher
from allmem.distill.trainer import StageTrainer
from allmem.errors import AllMemError
from allmem.files import atomic_folder
from allmem.models.adapter import ADAPTER, adapter_header, load_weights, save_adapter
from allmem.models.cache import AllMemCache
from allmem.models.modeling import AllMemForCausalLM

__all__ = ["Outcome", "distill"]

MEASURED_STEPS = 2
"""Steps that are timed to turn minutes into steps, after one to warm up."""


@dataclass(frozen=True)
class Outcome:
    """The figures of a run, on the held-out rows."""

    before: Comparison
    after: Comparison
    tokens: int
    seconds: float
    """Of training in this process."""


def distill(
    model: AllMemForCausalLM,
    rows: Rows,
    held_out: Sequence[Row],
    config: DistillConfig,
    folder: Path | None = None,
    *,
    teacher: Teacher | None = None,
    began: dict[str, Any] | None = None,
    on_step: Callable[[Step], None] | None = None,
    on_compared: Callable[[str, Comparison], None] | None = None,
) -> Outcome:
    """Compare, train, compare. A run that the folder holds goes on where it stopped.

    Args:
        model: converted; its memories are trained in place.
        held_out: to be judged by.
        teacher: default: the model's own weights with full attention.
        began: the note of the adapter whose training goes on, kept in that of the new one.
        on_compared: called with ("before" | "after", figures) as soon as they are known.

    Raises:
        AllMemError: if rows are too short, a file cannot be written, the folder holds another run,
            or training breaks down.
    """
    processes = PartialState(cpu=model.device.type == "cpu")
    _check(model, rows, config)
    frozen = adapter_header(model)["base"]
    agreed = essence(model, rows, config, frozen)
    plan = saved_plan(folder, agreed)
    before = None if plan is None else saved_before(folder)
    begun = time.perf_counter()
    with training_weights(model):
        if plan is None:
            plan = _plan(model, rows, config, teacher, processes)
            if processes.is_main_process:
                write_plan(folder, agreed, plan)
    if before is None:
        before = compare(model, held_out, beyond=config.positions == "beyond")
        if processes.is_main_process:
            write_results(folder, before, None)
    processes.wait_for_everyone()
    if on_compared is not None:
        on_compared("before", before)
    with training_weights(model):
        _start_alphas(model, config.alpha_start)
        total = sum(span.steps for span in plan)
        done = 0
        for number, span in enumerate(plan, 1):
            place = Place(span, done, total)
            own = None if folder is None else folder / f"{number}-{span.stage}"
            if span.stage in ("calibrate", "solve"):
                _look(model, rows, config, place, own, processes, on_step)
            else:
                if own is not None:
                    own.mkdir(exist_ok=True)
                StageTrainer(model, rows, config, place, own, teacher, on_step).resume()
            done += span.steps
    seconds = time.perf_counter() - begun
    if adapter_header(model)["base"] != frozen:
        raise AllMemError("training changed weights that are frozen; please report this")
    tokens = round(done * config.rows_per_step(processes.num_processes) * rows.mean)
    after = compare(model, held_out, control=True, beyond=config.positions == "beyond")
    lead = processes.is_main_process
    if folder is not None:
        note = {"tokens": tokens, "steps": done, **({"before": began} if began else {})}
        save_adapter(model, folder / ADAPTER, note, lead=lead)
    if lead:
        write_results(folder, before, after)
    processes.wait_for_everyone()
    if on_compared is not None:
        on_compared("after", after)
    return Outcome(before, after, tokens, seconds)


@torch.no_grad()
def _start_alphas(model: AllMemForCausalLM, value: float) -> None:
    """In layers that have not learned theirs. A run that goes on then reads its checkpoint."""
    for mixed in model.mixers():
        if mixed.memory is not None and not bool(mixed.alpha.any()):
            mixed.alpha.fill_(value)


def _check(model: AllMemForCausalLM, rows: Rows, config: DistillConfig) -> None:
    """What can be told before anything is computed."""
    windows = [model.config.window] if config.random is None else config.random.windows
    if config.positions == "beyond":
        check_reaches_beyond(rows.longest, min(windows))
    for name in config.report_to:
        try:
            # Made once to see whether its package is there.
            for reporter in get_reporting_integration_callbacks([name]):
                reporter()
        except (ValueError, RuntimeError, ImportError) as error:
            reason = str(error).strip().split("\n")[0]
            raise AllMemError(f"report_to: {name!r} cannot be used: {reason}") from error
    if config.calibrate_steps:
        check_calibrates(model)
    stages = {"match": trains, "solve": has_unit}
    for name in [span.stage for span in config.spans(100, solvable=_solvable(model))]:
        if name in stages and not any(stages[name](mixed) for mixed in model.mixers()):
            raise AllMemError(
                f"no layer has a memory beside a window that the stage {name} can train; choose "
                "other mixers, or the stage kl"
            )
        if name == "match" and config.fsdp:
            raise AllMemError("the stage match works within layers and cannot be sharded (fsdp)")


def _solvable(model: AllMemForCausalLM) -> bool:
    return any(has_unit(mixed) for mixed in model.mixers())


def _plan(
    model: AllMemForCausalLM,
    rows: Rows,
    config: DistillConfig,
    teacher: Teacher | None,
    processes: PartialState,
) -> list[Span]:
    """The stages, with the budget in steps."""
    if config.steps is not None:
        steps = config.steps
    elif config.tokens is not None:
        per_step = config.rows_per_step(processes.num_processes) * rows.mean
        steps = round(config.tokens / per_step)
    else:
        assert config.minutes is not None
        steps = round(60 * config.minutes / _seconds_per_step(model, rows, config, teacher))
        steps = int(broadcast(torch.tensor(steps, device=processes.device)))
    return config.spans(max(steps, 1), _solvable(model))


def _seconds_per_step(
    model: AllMemForCausalLM, rows: Rows, config: DistillConfig, teacher: Teacher | None
) -> float:
    """Of one step end to end, measured; nothing is changed by it."""
    distillation = Distillation(model, config, "kl", teacher).train()
    seconds = 0.0
    batches = iter(Batches(rows, config, own_sizes(model)))
    for i in range(MEASURED_STEPS + 1):
        # Making a row may take longer than learning from it.
        begin = time.perf_counter()
        batch = next(batches)
        total, _ = distillation(**_placed(batch, model.device))
        total.backward()
        # Waits for the device.
        total.item()
        seconds += time.perf_counter() - begin if i else 0.0
    for parameter in model.memory_parameters().values():
        parameter.grad = None
    return seconds / MEASURED_STEPS * config.accumulate


def _placed(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}


def _look(
    model: AllMemForCausalLM,
    rows: Rows,
    config: DistillConfig,
    place: Place,
    folder: Path | None,
    processes: PartialState,
    on_step: Callable[[Step], None] | None,
) -> None:
    """The stages without a backward pass. Every process reads all rows, so that all come to the
    same weights; a run that was stopped in one begins it anew, to the same end."""
    found = None if folder is None else last_checkpoint(folder)
    if found is not None:
        load_weights(model, found / ADAPTER)
        return
    looker = Calibrator() if place.span.stage == "calibrate" else ReadoutSolver()
    size = config.rows_per_step(processes.num_processes)
    whole = dataclasses.replace(config, batch=size, accumulate=1)
    begun = time.perf_counter()
    batches = Batches(rows, whole, own_sizes(model), before=place.before)
    steps = islice(batches, place.span.steps)
    for i, batch in enumerate(steps, 1):
        batch = _placed(batch, model.device)
        sizes = batch["sizes"]
        cache = AllMemCache(model.config, sizes.config, sizes.chunk)
        with computing(model):
            layers = looker.step(model, batch, batch["labels"][:, 1:] != IGNORED, cache)
            if isinstance(looker, Calibrator) and i == place.span.steps:
                looker.start(model)
        if on_step is not None and processes.is_main_process:
            loss = sum(layers.values()) / len(layers)
            seconds = time.perf_counter() - begun
            on_step(measure(model, place, i, loss, size * rows.mean, seconds))
    if folder is not None and processes.is_main_process:
        with atomic_folder(folder / f"checkpoint-{place.span.steps}") as part:
            save_adapter(model, part / ADAPTER)
    processes.wait_for_everyone()
