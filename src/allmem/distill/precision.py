"""Which numbers training computes with: the frozen weights as they are loaded, the slow weights in
fp32.

A bf16 weight cannot take a step of a thousandth of itself. Under autocast fp32 weights multiply in
the precision of the frozen ones, and the sums of the inner loop stay in fp32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch

from allmem.errors import AllMemError
from allmem.models.modeling import AllMemForCausalLM

__all__ = ["computing", "training_weights"]


def computing(model: AllMemForCausalLM) -> AbstractContextManager[object]:
    """Autocast to the precision of the frozen weights, where that is half of fp32.

    Raises:
        AllMemError: for fp16, whose gradients would need scaling.
    """
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings.weight, torch.Tensor)
    dtype = embeddings.weight.dtype
    if dtype == torch.float16:
        raise AllMemError("distillation in float16 loses small gradients; load with bfloat16")
    if dtype != torch.bfloat16:
        return contextlib.nullcontext()
    return torch.autocast(model.device.type, dtype)


@contextlib.contextmanager
def training_weights(model: AllMemForCausalLM) -> Iterator[None]:
    """The slow weights in fp32 and alone trainable; afterwards in their own precision again, and
    everything as it was else.

    Raises:
        AllMemError: if no layer has a memory.
    """
    parameters = model.memory_parameters()
    if not parameters:
        raise AllMemError("no layer of this model has a memory; there is nothing to train")
    own = {name: p.dtype for name, p in parameters.items()}
    training = model.training
    model.freeze_base()
    for parameter in parameters.values():
        parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
    try:
        yield
    finally:
        for name, parameter in model.memory_parameters().items():
            parameter.data = parameter.data.to(own[name])
            parameter.grad = None
        model.train(training)
