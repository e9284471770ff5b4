"""What transformers is told about a stage, in its own words."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import TrainingArguments

from allmem.distill.config import DistillConfig
from allmem.distill.progress import Place
from allmem.models.modeling import AllMemForCausalLM

__all__ = ["checkpoint_layers", "training_arguments"]


def checkpoint_layers(model: AllMemForCausalLM) -> None:
    """Gradient checkpointing, by whichever name this version of transformers knows it."""
    name = "activation_checkpointing_enable"
    enable = getattr(model, name, None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def training_arguments(
    config: DistillConfig, place: Place, folder: Path | None, device: torch.device
) -> TrainingArguments:
    """The stage of a configuration; checkpoints and their places are ``StageTrainer``'s."""
    steps = place.span.steps
    stage_rate, _ = config.rates(place.span.stage)
    return TrainingArguments(
        output_dir=str(folder or "unused"),
        max_steps=steps,
        per_device_train_batch_size=config.batch,
        gradient_accumulation_steps=config.accumulate,
        learning_rate=stage_rate,
        max_grad_norm=config.clip,
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={
            "num_decay_steps": round(config.decay * steps),
            "decay_type": "linear",
        },
        warmup_steps=round(config.warmup * steps),
        seed=config.seed,
        save_strategy="no",
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=list(config.report_to) or "none",
        project="allmem",
        run_name=None if folder is None else f"{folder.parent.name}/{folder.name}",
        disable_tqdm=True,
        remove_unused_columns=False,
        ignore_data_skip=True,
        use_cpu=device.type == "cpu",
        deepspeed=config.deepspeed,
        # A chunk that never closes leaves the inner rates without a gradient.
        ddp_find_unused_parameters=True,
    )
