"""The training loop: match every layer alone, then distil end to end.

Only the memories' slow weights change. The loop knows token ids and reports by callback; it reads
no files but its checkpoint and prints nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from allmem.data import Sequences
from allmem.distill.checkpoint import Place, load_checkpoint, restore_moments, save_checkpoint
from allmem.distill.config import DistillConfig
from allmem.distill.evaluate import check_reaches_beyond, head_of
from allmem.distill.losses import forward_kl
from allmem.distill.matching import match_layers, trains
from allmem.distill.optimizer import Masters, make_optimizer, warmup_stable_decay
from allmem.distill.solving import ReadoutSolver, solves
from allmem.errors import AllMemError
from allmem.models.adapter import save_adapter
from allmem.models.fingerprint import fingerprint
from allmem.models.modeling import AllMemForCausalLM

__all__ = ["ADAPTER", "CHECKPOINT", "Step", "Trainer"]

ADAPTER = "adapter.safetensors"
CHECKPOINT = "training.safetensors"


@dataclass(frozen=True)
class Step:
    """What a step reports."""

    number: int
    stage: str
    loss: float
    """KL in nats, or the mean normalised error of the layers; before the step changed anything."""
    gradient: float
    """Norm before clipping."""
    alpha: float
    """Mean |alpha| over layers and channels, after the step."""
    rate: float
    """Share of the peak rates."""
    tokens: int
    """Of the whole run so far."""
    seconds: float
    progress: float
    layers: dict[int, float]
    """Error by layer, when matching."""

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)

    @property
    def seconds_left(self) -> float:
        return self.seconds * (1 - self.progress) / max(self.progress, 1e-9)


class Trainer:
    """One distillation run.

    Args:
        model: converted; its memories are trained in place, its other weights are frozen.
        sequences: the training text.
        config: budget and rates.
        folder: where adapter and checkpoint go; ``None`` to keep nothing.
        resume: go on from the folder's checkpoint.

    Raises:
        AllMemError: if nothing can be trained, or the checkpoint is of another run.
    """

    def __init__(
        self,
        model: AllMemForCausalLM,
        sequences: Sequences,
        config: DistillConfig,
        folder: Path | None = None,
        resume: bool = False,
    ) -> None:
        self.model = model
        self.sequences = sequences
        self.config = config
        self.folder = folder
        self.first = model.config.window
        check_reaches_beyond(sequences.length, self.first)
        solvable = any(solves(mixed) for mixed in model.mixers())
        self.stages = config.stages(solvable)
        for name, able in (("match", trains), ("solve", solves)):
            named = name in [stage for stage, _, _ in self.stages]
            if named and not any(able(mixed) for mixed in model.mixers()):
                raise AllMemError(
                    f"no layer has a memory beside a window that the stage {name} can train; "
                    "choose other mixers, or the stage kl"
                )
        self.head = head_of(model)
        model.freeze_base()
        self.masters = Masters(model.memory_parameters())
        self.place = Place()
        self.optimizer: torch.optim.AdamW | None = None
        self.solver = ReadoutSolver(self.first)
        torch.manual_seed(config.seed)
        if resume:
            self._resume()

    # The run

    def run(self, on_step: Callable[[Step], None] | None = None) -> None:
        """Train until the budget is spent, and leave adapter and checkpoint in the folder.

        Raises:
            AllMemError: if the loss or its gradient is no number; what was saved before stays.
        """
        self.model.train()
        saved = time.perf_counter()
        while self.progress < 1:
            step = self._step()
            if on_step is not None:
                on_step(step)
            every = self.config.checkpoint_steps
            if every is not None:
                due = step.number % every == 0
            else:
                due = time.perf_counter() - saved > 60 * self.config.checkpoint_minutes
            if due:
                self.save()
                saved = time.perf_counter()
        self.model.eval()
        self.save()

    @property
    def progress(self) -> float:
        """Share of the budget that is spent."""
        return self.config.progress(self.place.tokens, self.place.seconds)

    def _step(self) -> Step:
        begin = time.perf_counter()
        place, config = self.place, self.config
        stage, share = self._stage()
        if place.stage != stage:
            place.stage = stage
            self._begin_stage()
        ids = self.sequences.batch(place.sequences, config.batch).to(self.model.device)
        layers: dict[int, float] = {}
        gradient = rate = 0.0
        if stage == "solve":
            layers = self.solver.step(self.model, ids)
            self.masters.collect()
        elif stage == "match":
            layers = match_layers(self.model, ids, self.first)
        loss = sum(layers.values()) / len(layers) if layers else self._end_to_end(ids)
        if stage != "solve":
            rate = warmup_stable_decay(share, config.warmup, config.decay)
            gradient = self._descend(loss, rate)
        self._check_finite(loss, gradient)

        place.step += 1
        place.sequences += config.batch
        place.tokens += ids.numel()
        place.seconds += time.perf_counter() - begin
        return Step(
            number=place.step,
            stage=stage,
            loss=loss,
            gradient=gradient,
            alpha=self.mean_alpha(),
            rate=rate,
            tokens=place.tokens,
            seconds=place.seconds,
            progress=self.progress,
            layers=layers,
        )

    def _stage(self) -> tuple[str, float]:
        """The stage of the next step, and its place in it: counted to the middle of the step, so
        that neither the first nor the last one is lost to a rate of zero."""
        place = self.place
        per_step = self.config.batch * self.sequences.length / 2
        pace = place.seconds / max(place.step, 1) / 2
        now = self.progress
        middle = self.config.progress(place.tokens + int(per_step), place.seconds + pace)
        for name, begin, end in self.stages:
            if now < end:
                return name, min((middle - begin) / (end - begin), 1.0)
        raise AssertionError("the budget is spent")

    def _end_to_end(self, ids: Tensor) -> float:
        """Forward KL beyond the window (paper section 3.3.2); leaves its gradient."""
        with torch.no_grad():
            teacher = self.model.hidden_states(ids, full_attention=True)
        student = self.model.hidden_states(ids)
        loss = forward_kl(teacher[:, self.first :], student[:, self.first :], self.head)
        loss.backward()
        return float(loss.detach())

    def _begin_stage(self) -> None:
        """Fresh moments for another loss."""
        config, stage = self.config, self.place.stage
        if stage == "solve":
            return
        self.solver.sums.clear()
        rates = config.rates(stage)
        self.optimizer = make_optimizer(self.masters.weights, *rates, config.weight_decay)

    def _descend(self, loss: float, factor: float) -> float:
        """One step at ``factor`` of the peak rates; returns the gradient's norm."""
        assert self.optimizer is not None
        self.masters.take_gradients()
        weights = list(self.masters.weights.values())
        gradient = float(torch.nn.utils.clip_grad_norm_(weights, self.config.clip))
        self._check_finite(loss, gradient)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.masters.publish()
        return gradient

    def _check_finite(self, loss: float, gradient: float) -> None:
        if math.isfinite(loss) and math.isfinite(gradient):
            return
        kept = "" if self.folder is None else f"; the last checkpoint in {self.folder} is unharmed"
        raise AllMemError(
            f"step {self.place.step + 1} ({self.place.stage}): loss {loss} with a gradient of norm "
            f"{gradient}; training stopped before it changed a weight{kept}. Lower "
            f"--lr (now {self.config.lr})"
        )

    def mean_alpha(self) -> float:
        """Mean |alpha| over layers and channels."""
        alphas = [w for name, w in self.masters.weights.items() if name.endswith("alpha")]
        return float(torch.cat([a.detach().flatten() for a in alphas]).abs().mean())

    # What stays

    def save(self) -> None:
        """Write checkpoint and adapter, if there is a folder.

        Raises:
            AllMemError: if one cannot be written; the files before are unharmed then.
        """
        if self.folder is None:
            return
        save_checkpoint(
            self.folder / CHECKPOINT,
            self.masters,
            self.optimizer,
            self.solver.tensors(),
            self.place,
            self._run(),
        )
        note = {"tokens": self.place.tokens, "steps": self.place.step}
        save_adapter(self.model, self.folder / ADAPTER, note)

    def _resume(self) -> None:
        assert self.folder is not None
        self.place, moments, sums = load_checkpoint(
            self.folder / CHECKPOINT, self.masters, self._run()
        )
        self.solver.load(sums, self.model.device)
        if self.place.stage:
            self._begin_stage()
        if self.optimizer is not None:
            restore_moments(self.optimizer, moments)

    def _run(self) -> dict[str, Any]:
        """What a resumed run must agree on."""
        essence = self.model.config.essence()
        frozen = {n: p for n, p in self.model.named_parameters() if not p.requires_grad}
        return {
            **{k: v for k, v in essence.items() if k != "base"},
            **self.config.essence(),
            "base model": fingerprint(frozen),
            "text": self.sequences.fingerprint(),
        }
