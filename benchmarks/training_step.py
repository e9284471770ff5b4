"""One step of distillation as a function that can be called again: forward and backward pass of
``Distillation`` and a step of AdamW, whose moments are there from the beginning, as in every step
but the first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from allmem.data.labels import IGNORED
from allmem.data.stream import collate
from allmem.distill import Distillation, DistillConfig
from allmem.distill.arguments import checkpoint_layers
from allmem.distill.optimizer import make_optimizer
from allmem.distill.precision import training_weights
from allmem.distill.rows import own_sizes, plain_row
from allmem.models.modeling import AllMemForCausalLM

__all__ = ["step_of", "text_batch"]

Batch = dict[str, Tensor]


def text_batch(ids: Tensor, counted: int) -> Batch:
    """Rows ids [B, T], each one document, of which the loss counts the last ``counted`` tokens."""
    rows = collate([plain_row(row) for row in ids.cpu()])
    rows["labels"][:, : max(ids.shape[1] - counted, 0)] = IGNORED
    return {key: value.to(ids.device) for key, value in rows.items()}


@contextlib.contextmanager
def step_of(
    model: AllMemForCausalLM,
    segment: int | None = None,
    checkpointed: bool = False,
    overlapped: bool = False,
) -> Iterator[Callable[[Batch], float]]:
    """Inside the block the slow weights are in fp32 and trainable.

    Args:
        model: trained in place.
        segment, checkpointed, overlapped: ``segment``, ``checkpoint_layers`` and
            ``overlap_teacher`` of ``DistillConfig``.

    Yields:
        a function that makes a step on a batch and returns the sum of its losses.
    """
    config = DistillConfig(
        steps=1,
        stage="kl",
        positions="all",
        segment=segment,
        checkpoint_layers=checkpointed,
        overlap_teacher=overlapped,
    )
    with training_weights(model):
        if checkpointed:
            checkpoint_layers(model)
        distillation = Distillation(model, config).train()
        optimizer = make_optimizer(model.memory_parameters(), 1e-3, 1e-3, 0.01)
        for parameter in model.memory_parameters().values():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for name, parameter in model.memory_parameters().items():
                # At its start of zero, alpha lets no gradient through.
                if name.endswith("alpha"):
                    parameter.fill_(0.1)

        def step(batch: Batch) -> float:
            total, _ = distillation(**batch, sizes=own_sizes(model))
            total.backward()
            optimizer.step()
            optimizer.zero_grad()
            return float(total.detach())

        yield step
