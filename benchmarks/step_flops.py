"""The FLOPs that a step of distillation needs, in closed form, from those of reading
(``allmem.cost.flops``).

Needed is what the result depends on: the teacher's pass; the student's pass; and its backward pass,
in which every product costs once more for each of its two inputs that needs a gradient. Frozen
weights need none, so the base model's linear maps cost once more, and attention scores, the inner
loop and the memory's own maps twice more. Nothing below the first memory needs one, nor what the
last chunk writes, which nobody reads. What is computed again to save memory is not needed. Not
counted, as in reading: what is done number by number, the optimiser among it.

Letters: T tokens of a row, B rows, n positions that the loss counts in a row, D hidden size,
V vocabulary, C chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from allmem.cost.flops import HEAD, MLP, readings
from allmem.mixers.allmem import AllMemMixer
from allmem.models.layer import MixedAttention
from allmem.models.modeling import AllMemForCausalLM

__all__ = ["StepFlops", "step_flops"]


@dataclass(frozen=True)
class StepFlops:
    """Of one step, by pass."""

    teacher: int
    student: int
    backward: int
    head: int
    """Logits of both models and the gradient of the student's: 3 · 2 D V for every position."""

    @property
    def total(self) -> int:
        return self.teacher + self.student + self.backward + self.head


def step_flops(model: AllMemForCausalLM, tokens: int, counted: int, rows: int = 1) -> StepFlops:
    """Of a step of the stage ``kl`` whose teacher is the model's own weights.

    Args:
        model: converted, its memories ``allmem`` with full projections; may stand on the meta
            device.
        tokens: T, of a row of one document.
        counted: n.
        rows: B.
    """
    original, _, reading = readings(model)
    teacher, student = original.prefill(tokens), reading.prefill(tokens)
    mixed = model.mixers()
    mlp = student[MLP] // len(mixed)
    first = next(i for i, layer in enumerate(mixed) if layer.memory is not None)
    backward = sum(_backward(x, tokens, mlp, i > first) for i, x in enumerate(mixed) if i >= first)
    return StepFlops(
        teacher=rows * (sum(teacher.values()) - teacher[HEAD]),
        student=rows * (sum(student.values()) - student[HEAD]),
        backward=rows * backward,
        head=rows * counted * 3 * reading.head,
    )


def _backward(layer: MixedAttention, tokens: int, mlp: int, below: bool) -> int:
    """Of one decoder layer.

    Args:
        mlp: FLOPs of its MLP.
        below: whether what enters the layer needs a gradient.
    """
    total = mlp
    if below:
        parts = layer.attention.flops_by_part(tokens)
        total += parts["attention projections"] + 2 * parts["attention scores"]
    if layer.memory is None:
        return total
    assert isinstance(layer.memory, AllMemMixer)
    unit = layer.memory.unit
    assert unit.config.projections == "full"
    projections = unit.projections
    parts = layer.memory.flops_by_part(tokens)
    # Tokens whose writes are read: those of all chunks but the last.
    writers = (tokens - 1) // unit.config.chunk * unit.config.chunk
    written = layer.memory.flops_by_part(writers)
    writing = 2 * writers * _numbers(projections.k, projections.v) + written["memory rates"]
    reading = 2 * tokens * _numbers(projections.q, projections.g)
    # What the output projection reads needs a gradient in any case.
    total += 4 * tokens * _numbers(projections.o) + (2 if below else 1) * (reading + writing)
    loop = parts["memory read"] + written["memory key forward"] + written["memory gradient"]
    return total + 2 * loop


def _numbers(*modules: nn.Module | None) -> int:
    """Weights of linear maps, of those that are there."""
    return sum(p.numel() for module in modules if module for p in module.parameters())
