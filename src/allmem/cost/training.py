"""What one step of distillation keeps in memory, by formula, before any of it is computed.

Nothing is allocated: the parameters are counted on the meta device, and what autograd keeps follows
from the operations of a layer. Weights, optimiser and states are exact. What autograd keeps is
exact but for indices, masks and the first layer, whose attention needs no gradient. Temporaries,
loss and teacher are the largest operands that live at one time, and are the approximate part: an
allocator's rounding and a product's scratch memory come on top (``benchmarks/step_memory.py``
measures by how much).

Letters: R rows, N slots of a call, D hidden size, V vocabulary, I width of the MLP, Q query heads,
K KV heads, E head size, S sinks, W window, C chunk, H memory heads, P = H d, h = H times the width
of the memory network, M fast matrices with F weights in all; b bytes of a number in the model's
precision, w in that of the inner loop (4, or 8 for float64).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from allmem.config import WindowConfig
from allmem.distill.config import Objective
from allmem.distill.sizes import Sizes
from allmem.errors import AllMemError
from allmem.memory.muon import NEWTON_SCHULZ
from allmem.memory.state import accumulation_dtype
from allmem.memory.unit import MemoryUnit
from allmem.mixers.allmem import AllMemMixer
from allmem.mixers.attention import WindowMixer
from allmem.models.configuration import AllMemConfig
from allmem.models.layer import MixedAttention
from allmem.models.modeling import AllMemForCausalLM
from allmem.models.structure import decoder_layers

__all__ = ["TrainingMemory", "training_memory"]

LOSS_BLOCKS = 5
"""fp32 blocks of logits at one time: both predictions, and exp, difference and product of a KL."""

BACKWARD_PRODUCTS = 4
"""Tensors of I at one time in the backward pass of an MLP, the widest of a layer: the gradients of
the product, of SiLU(gate), of up and of gate."""


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of one step, by what they are for."""

    frozen: int
    """The base model's weights, in its precision. Exact."""
    slow: int
    """The memories' slow weights, in fp32. Exact."""
    gradients: int
    """Of the slow weights, fp32. Exact from the first backward pass through all layers on."""
    moments: int
    """AdamW's two, fp32. Exact."""
    copies: int
    """The slow matrices in the model's precision, which autocast makes once and keeps. Exact;
    with ``checkpoint_layers`` those of one layer are left when its gradient is computed."""
    targets: int
    """The teacher's last hidden states at the n positions that count: n D b. Exact."""
    states: int
    """What each segment begins from: segments times ``AllMemCache.nbytes``. Exact."""
    flow: int
    """Between two segments while one is read again: its states a second time, and the gradient with
    respect to them. An upper bound: twice ``AllMemCache.nbytes``."""
    activations: int
    """What autograd keeps of a segment until its backward pass: of all layers, or with
    ``checkpoint_layers`` what enters them. Not in it: both together also keep the embeddings and
    the tables of cos and sin of all segments, (D + 4 E) b a token, 75 MB for 24k of Qwen3-0.6B."""
    layer: int
    """With ``checkpoint_layers``: what autograd keeps of the layer that is read again."""
    temporaries: int
    """Of the backward pass through one layer: R N 4 I b. Approximate."""
    loss: int
    """Blocks of logits, 5 in fp32, while a segment's activations are there. Approximate."""
    teacher: int
    """While the teacher reads all of a row in one call, before the student begins. Approximate."""

    @property
    def held(self) -> int:
        """From before a step to after it."""
        return self.frozen + self.slow + self.gradients + self.moments

    @property
    def student(self) -> int:
        """The most that the student's pass needs beside ``held``."""
        kept = self.copies + self.targets + self.states + self.flow + self.activations
        return kept + max(self.loss, self.layer + self.temporaries)

    @property
    def total(self) -> int:
        """The peak: ``held`` and the larger of teacher and student, who do not meet."""
        return self.held + max(self.targets + self.teacher, self.student)


def training_memory(
    config: AllMemConfig,
    length: int,
    batch: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    segment: int | None = None,
    checkpoint_layers: bool = False,
    *,
    objective: Objective | None = None,
    sizes: Sizes | None = None,
    counted: int | None = None,
) -> TrainingMemory:
    """The memory of a step of the stage ``kl`` whose teacher is the model's own weights.

    Args:
        length: tokens of a row, all of one document.
        batch: rows.
        dtype: of the frozen weights and the computation.
        segment, checkpoint_layers, objective: as ``DistillConfig`` has them.
        sizes: window, sinks and chunk to read with; ``None`` for the model's own.
        counted: positions that the loss counts in a row; ``None`` for those beyond the window.

    Raises:
        AllMemError: for layers whose training is not counted here: those with full attention, and
            memories of other kinds than ``allmem``.
    """
    with torch.device("meta"):
        model = AllMemForCausalLM(config)
    # What the states' dtypes follow from.
    model.to(dtype=dtype)
    mixers = model.mixers()
    _check(mixers)
    sizes = sizes or Sizes(config.window, config.sinks, config.chunk)
    if counted is None:
        counted = max(length - 1 - sizes.window, 0)
    piece = min(segment or length, length)
    calls = list(_calls(length, piece, batch))
    b = dtype.itemsize
    hidden = int(model.config.hidden_size)

    slow = sum(p.numel() for p in model.memory_parameters().values())
    frozen = sum(p.numel() for p in model.parameters()) - slow
    fp32 = torch.promote_types(dtype, torch.float32).itemsize
    state = _state_bytes(model, batch, dtype, sizes.config)
    copies = sum(_matrices(m) for m in mixers) * b if dtype == torch.bfloat16 else 0

    layers = range(len(mixers))
    kept = [max(_layer_keeps(model, i, c, sizes, dtype) for c in calls) for i in layers]
    tokens = batch * piece
    ends = tokens * hidden * fp32 + max(_tables(m, c, sizes, b) for m in mixers for c in calls)
    if checkpoint_layers:
        activations, layer = ends + len(mixers) * tokens * hidden * b, max(kept)
    else:
        activations, layer = ends + sum(kept), 0
    head: Any = model.get_output_embeddings()
    block = min((objective or Objective()).block, batch * min(counted, piece))
    return TrainingMemory(
        frozen=frozen * b,
        slow=slow * fp32,
        gradients=slow * fp32,
        moments=2 * slow * fp32,
        copies=copies,
        targets=batch * counted * hidden * b,
        states=len(calls) * state,
        flow=2 * state if len(calls) > 1 else state,
        activations=activations,
        layer=layer,
        temporaries=tokens * BACKWARD_PRODUCTS * max(_mlp_width(model, i) for i in layers) * b,
        loss=block * int(head.out_features) * LOSS_BLOCKS * fp32,
        teacher=batch * length * _teacher_per_token(model, dtype),
    )


@dataclass(frozen=True)
class _Call:
    """A segment of all rows."""

    rows: int
    start: int
    slots: int

    @property
    def tokens(self) -> int:
        return self.rows * self.slots

    def rounds(self, chunk: int) -> int:
        """Pieces of chunks that it touches."""
        return -(-(self.start % chunk + self.slots) // chunk)

    def passes(self, window: WindowConfig) -> bool:
        """Whether a token of it lies beyond S + W - 1, where sinks get queries of their own."""
        return window.sinks > 0 and self.start + self.slots > window.sinks + window.window


def _calls(length: int, segment: int, rows: int) -> Iterator[_Call]:
    for start in range(0, length, segment):
        yield _Call(rows, start, min(segment, length - start))


def _check(mixers: list[MixedAttention]) -> None:
    for mixed in mixers:
        attention, memory = mixed.attention, mixed.memory
        if not isinstance(attention, WindowMixer) or not isinstance(memory, AllMemMixer | None):
            raise AllMemError(
                f"layer {mixed.layer} has {type(attention).__name__} and {type(memory).__name__}: "
                "training memory is counted for allmem, window and local layers only"
            )


def _window(mixed: MixedAttention, sizes: Sizes) -> WindowConfig:
    assert isinstance(mixed.attention, WindowMixer)
    return mixed.attention.window_of(sizes.config)


def _state_bytes(
    model: AllMemForCausalLM, rows: int, dtype: torch.dtype, window: WindowConfig
) -> int:
    """Of ``AllMemCache.nbytes`` after a call."""
    device = torch.device("meta")
    states = [m.init_state(rows, dtype, device, window) for m in model.mixers()]
    return sum(state.nbytes for state in states)


def _matrices(mixed: MixedAttention) -> int:
    """Slow weights that a layer multiplies with under autocast."""
    if not isinstance(mixed.memory, AllMemMixer):
        return 0
    return sum(p.numel() for p in mixed.memory.unit.projections.parameters())


def _tables(mixed: MixedAttention, call: _Call, sizes: Sizes, b: int) -> int:
    """cos and sin of all positions, and once more for queries of sinks; shared by the layers."""
    window = _window(mixed, sizes)
    return call.slots * 2 * (1 + call.passes(window)) * mixed.attention.shape.head_dim * b


def _mlp_width(model: AllMemForCausalLM, layer: int) -> int:
    """I: the widest linear map of a decoder layer's MLP."""
    mlp: Any = decoder_layers(model.base)[layer]
    return max(m.out_features for m in mlp.mlp.modules() if isinstance(m, torch.nn.Linear))


def _layer_keeps(
    model: AllMemForCausalLM, layer: int, call: _Call, sizes: Sizes, dtype: torch.dtype
) -> int:
    """What autograd keeps of a decoder layer: R N (8 D + 3 I b), the norms' fp32 inputs and the
    MLP's gate, SiLU(gate) and up; and what its attention and its memory keep. A frozen weight keeps
    no input."""
    mixed = model.mixers()[layer]
    norms = 2 * int(model.config.hidden_size) * accumulation_dtype(dtype).itemsize
    mlp = 3 * _mlp_width(model, layer) * dtype.itemsize
    kept = call.tokens * (norms + mlp) + _attention_keeps(mixed, call, sizes, dtype)
    if isinstance(mixed.memory, AllMemMixer):
        kept += _memory_keeps(mixed.memory.unit, call, sizes.chunk, dtype)
    return kept


def _attention_keeps(mixed: MixedAttention, call: _Call, sizes: Sizes, dtype: torch.dtype) -> int:
    """R N ((Q + K) E w [norms] + (2 Q + 2 K) E b [q, out, k, v]), another q for sinks, and
    R 2 K E b for each token of history and each sink."""
    shape, b = mixed.attention.shape, dtype.itemsize
    q, k = shape.query_heads * shape.head_dim, shape.kv_heads * shape.head_dim
    window = _window(mixed, sizes)
    per_token = (2 * q + 2 * k + (q if call.passes(window) else 0)) * b
    core: Any = mixed.attention.core
    if hasattr(core, "q_norm"):
        per_token += (q + k) * accumulation_dtype(dtype).itemsize
    old = min(window.window - 1, call.start) + window.sinks
    return call.tokens * per_token + call.rows * old * 2 * k * b


def _memory_keeps(unit: MemoryUnit, call: _Call, chunk: int | None, dtype: torch.dtype) -> int:
    """Of a memory, per token:

        2 D b                    its input and its output (for alpha)
        2 D w                    the input in fp32, for each of the two rates
        6 P b                    what the convolutions read, with and without the tail
        2 P b                    the inputs of SiLU, of q and k
        4 P (w + b)              the inputs of the head norms in fp32, and what they gave
        3 P b                    the inner loop: q, k and v, from which it computes the rest again
        4 P b                    sigmoid, read, gate; what the output projection reads

    And, per piece of a chunk, 3 R F w: the matrices, the gradient for its clip and the momentum;
    with Muon also what it divides by its norm, and of each step its matrix and two squares.
    """
    config = unit.config
    D, P = unit.hidden_size, unit.heads * unit.head_dim
    F = sum(w.numel() for w in unit.initial.values())
    b, w = dtype.itemsize, accumulation_dtype(dtype).itemsize
    norms = 2 + config.normalize_values + config.output_norm
    per_token = 2 * D * b + norms * P * (w + b) + 2 * P * b
    # Where the model computes in fp32 already, its numbers are the ones that the rates read.
    per_token += (1 + config.momentum) * D * w if b < w else 0
    per_token += 3 * P * b * min(config.conv, 2)
    per_token += 3 * P * b
    per_token += (4 if config.gate else 1) * P * b
    copies = 1 + (config.clip is not None) + config.momentum + (config.norm == "post_update")
    per_chunk = copies * F
    if config.optimizer == "muon":
        squares = sum(w.shape[0] * min(w.shape[1:]) ** 2 for w in unit.initial.values())
        per_chunk += F + len(NEWTON_SCHULZ) * (F + 2 * squares)
    rounds = call.rounds(chunk or config.chunk)
    return call.tokens * per_token + rounds * call.rows * per_chunk * w


def _teacher_per_token(model: AllMemForCausalLM, dtype: torch.dtype) -> int:
    """2 D b, the hidden states twice, and the larger of 3 I b for the MLP and 3 (Q + K) E b."""
    b = dtype.itemsize
    widest = 0
    for layer, mixed in enumerate(model.mixers()):
        shape = mixed.attention.shape
        heads = 3 * (shape.query_heads + shape.kv_heads) * shape.head_dim
        widest = max(widest, 3 * _mlp_width(model, layer), heads)
    return (2 * int(model.config.hidden_size) + widest) * b
