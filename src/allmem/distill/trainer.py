"""A stage of gradient descent, by transformers' ``Trainer``.

Only the memories' slow weights change. What is ours here is what a memory needs: batches that say
with which sizes to read, a loss that is averaged over the positions that count on all devices,
checkpoints that are replaced as a whole and hold no pickle, and a run that goes on to the bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, TrainerState

from allmem.distill.arguments import checkpoint_layers, training_arguments
from allmem.distill.checkpoint import (
    STATE,
    last_checkpoint,
    load_process,
    load_training,
    remove_old_checkpoints,
    save_process,
    save_training,
)
from allmem.distill.config import DistillConfig
from allmem.distill.distillation import Distillation
from allmem.distill.optimizer import make_optimizer
from allmem.distill.progress import Place, Step, measure
from allmem.distill.rows import Batches, Rows, own_sizes
from allmem.distill.sharding import Placed, shard
from allmem.distill.teacher import Teacher
from allmem.errors import AllMemError
from allmem.files import atomic_folder, write_tensors
from allmem.models.adapter import ADAPTER, adapter_header, load_weights
from allmem.models.modeling import AllMemForCausalLM
from allmem.sharded import full_tensor

__all__ = ["DivergedError", "StageTrainer"]


class DivergedError(AllMemError):
    """A loss or a gradient is not finite: the run ended before it changed a weight."""


class StageTrainer(transformers.Trainer):
    """Train one stage, ``match`` or ``kl``.

    Args:
        model: converted, its slow weights in fp32 (``training_weights``); trained in place.
        rows: the training data.
        config: see ``DistillConfig``.
        place: the stage.
        folder: for checkpoints; ``None`` to keep nothing.
        teacher: default: the model's own weights.
        on_step: called after every step, in the first process.

    Raises:
        AllMemError: if nothing can be trained.
    """

    def __init__(
        self,
        model: AllMemForCausalLM,
        rows: Rows,
        config: DistillConfig,
        place: Place,
        folder: Path | None = None,
        teacher: Teacher | None = None,
        on_step: Callable[[Step], None] | None = None,
    ) -> None:
        self.student = model
        self.rows = rows
        self.settings = config
        self.place = place
        self.folder = folder
        self.on_step = on_step
        if config.checkpoint_layers:
            checkpoint_layers(model)
        self.header = adapter_header(model)
        self.divergence = 0.0
        self.first_step = 0
        self.begun = self.last_saved = time.perf_counter()
        self.batches: list[dict[str, Any]] = []
        if config.fsdp:
            shard(model)
        distillation = Distillation(model, config, place.span.stage, teacher)
        self.beginnings = distillation.beginnings
        super().__init__(
            model=distillation,
            args=training_arguments(config, place, folder, model.device),
            # Only to tell transformers that there is something to train on.
            train_dataset=Batches(rows, config, own_sizes(model)),
        )
        # Our sums are divided by the counts that ``get_batch_samples`` brings along.
        self.model_accepts_loss_kwargs = True
        self.remove_callback(PrinterCallback)
        self.add_callback(_Saving(self))

    # The data

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches from the step on at which the run stands."""
        batches = Batches(
            self.rows,
            self.settings,
            own_sizes(self.student),
            first_step=self.first_step,
            before=self.place.before,
            rank=self.args.process_index,
            world=self.args.world_size,
        )
        return DataLoader(batches, batch_size=None, num_workers=self.settings.workers)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """The micro-batches of a step, and how many positions of them count on all devices."""
        batches = [next(epoch_iterator) for _ in range(num_batches)]
        counts = sum((batch["labels"][:, 1:] >= 0).sum() for batch in batches)
        assert isinstance(counts, Tensor)
        counts = counts.to(self.args.device)
        if self.args.world_size > 1:
            counts = self.accelerator.gather(counts[None]).sum()
        self.batches = batches
        return batches, counts

    # The step

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The mean over the positions that count, of which this process has a part."""
        total, divergence = model(**inputs, step=self.place.before + self.state.global_step)
        assert isinstance(num_items_in_batch, Tensor)
        # Gradients are averaged over the processes afterwards.
        share = self.args.world_size / num_items_in_batch.clamp_min(1)
        loss = total * share
        self.divergence += float(divergence * share)
        if not math.isfinite(float(loss.detach())):
            self._stop(f"the loss is {float(loss.detach())}")
        return loss

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        norm = super()._clip_grad_norm(model)
        if norm is not None and not math.isfinite(float(norm)):
            self._stop(f"the norm of the gradient is {float(norm)}")
        return norm

    def _stop(self, what: str) -> None:
        """End a run that has broken down, before it changes a weight; keep what broke it."""
        number = self.place.before + self.state.global_step + 1
        stage = self.place.span.stage
        kept = ""
        if self.folder is not None:
            process = self.args.process_index
            file = self.folder / f"broken_step_{number}_process_{process}.safetensors"
            tensors = {
                f"{i}.{key}": value
                for i, batch in enumerate(self.batches)
                for key, value in batch.items()
                if isinstance(value, Tensor)
            }
            sizes = [str(batch["sizes"]) for batch in self.batches]
            write_tensors(file, "batch", tensors, {"what": what, "step": number, "sizes": sizes})
            kept = f" The step's batch is in {file}; earlier checkpoints are unharmed."
        raise DivergedError(
            f"step {number} ({stage}): {what}; training stopped before it changed a weight.{kept} "
            f"Lower the learning rate (now {self.settings.rates(stage)[0]:g})"
        )

    # The optimiser

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW over the slow weights alone."""
        if getattr(self, "optimizer", None) is None:
            rates = self.settings.rates(self.place.span.stage)
            self.optimizer = make_optimizer(
                self.student.memory_parameters(), *rates, self.settings.weight_decay
            )
        return cast("torch.optim.Optimizer", self.optimizer)

    def _move_model_to_device(self, model: Any, device: Any) -> None:
        """Nothing: it is there. Moving sharded weights would cut them off from their shards."""

    def _wrap_model(self, model: Any, training: bool = True, dataloader: Any = None) -> Any:
        # What is sharded already must not be wrapped by accelerate, which would copy it.
        return Placed(model) if self.settings.fsdp else super()._wrap_model(model, training)

    # What is shown

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """With what is to be seen of a memory beside the loss."""
        if "loss" in logs:
            step = self._step(logs)
            logs |= {
                "divergence": self.divergence,
                "alpha": step.alpha,
                "eta": step.eta,
                "tokens": float(step.tokens),
                "tokens_per_second": step.tokens_per_second,
            }
            if self.settings.random is not None:
                sizes = self.batches[-1]["sizes"]
                logs |= {"window": sizes.window, "sinks": sizes.sinks, "chunk": sizes.chunk or 0}
            self.divergence = 0.0
            if self.on_step is not None and self.is_world_process_zero():
                self.on_step(step)
        super().log(logs, start_time)

    def _step(self, logs: Mapping[str, float]) -> Step:
        return measure(
            self.student,
            self.place,
            self.state.global_step,
            float(logs["loss"]),
            self.settings.rows_per_step(self.args.world_size) * self.rows.mean,
            time.perf_counter() - self.begun,
            since=self.first_step,
            gradient=float(logs.get("grad_norm") or 0.0),
            rate=float(logs.get("learning_rate", 0.0)),
        )

    def decided_by_first(self, choice: bool) -> bool:
        """What the first process chose: clocks differ."""
        return bool(broadcast(torch.tensor(int(choice), device=self.args.device)))

    # What stays

    def _save_checkpoint(self, model: Any = None, trial: Any = None) -> None:
        """A folder of its own: written beside, renamed when complete, then the older ones removed.

        Raises:
            AllMemError: if it cannot be written; the one before is unharmed then.
        """
        if self.folder is None:
            return
        wait = self.accelerator.wait_for_everyone
        target = self.folder / f"checkpoint-{self.state.global_step}"
        first = self.is_world_process_zero()
        weights = {
            name: full_tensor(p).cpu() for name, p in self.student.memory_parameters().items()
        }
        with atomic_folder(target, lead=first, wait=wait) as part:
            save_process(part, self.args.process_index, self.beginnings.tensors())
            save_training(part, self, first)
            if first:
                done = self.place.before + self.state.global_step
                note = {"stage": self.place.span.stage, "steps": done}
                write_tensors(part / ADAPTER, "adapter", weights, self.header | {"note": note})
                self.state.save_to_json(str(part / STATE))
        if first:
            remove_old_checkpoints(self.folder, self.settings.keep_checkpoints)
        self.last_saved = time.perf_counter()

    def resume(self) -> None:
        """Train from the folder's last checkpoint on, or from the beginning if there is none."""
        found = None if self.folder is None else last_checkpoint(self.folder)
        if found is not None:
            self.first_step = TrainerState.load_from_json(str(found / STATE)).global_step
            if self.first_step >= self.place.span.steps:
                load_weights(self.student, found / ADAPTER)
                return
        self.train(resume_from_checkpoint=None if found is None else str(found))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_weights(self.student, Path(resume_from_checkpoint) / ADAPTER)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_training(Path(checkpoint), self)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            passed = load_process(Path(checkpoint), self.args.process_index)
            self.beginnings.load(passed)


class _Saving(TrainerCallback):
    """When to write a checkpoint: as the configuration says, and at the end."""

    def __init__(self, trainer: StageTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Setting up is no part of the pace.
        self.trainer.begun = self.trainer.last_saved = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        settings = self.trainer.settings
        if settings.checkpoint_steps is not None:
            due = state.global_step % settings.checkpoint_steps == 0
        else:
            due = time.perf_counter() - self.trainer.last_saved > 60 * settings.checkpoint_minutes
            due = self.trainer.decided_by_first(due)
        control.should_save = due or state.global_step >= state.max_steps
        return control
