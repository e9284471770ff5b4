"""Many sequences in one call, each at another place of its text: what a server reads in a step.

Their tokens lie side by side in one flat row, some sequences with a single token, some with a long
piece of a prompt. All that looks at one token only (embeddings, norms, MLPs, the head) works on the
flat row. Mixing, which does not, takes it apart into groups of sequences that are alike, so that no
slot is padded for long, and finds their states where the server keeps them. A layer's mixing is the
same code as in every other call.

Letters: K flat slots of a call, R rows of a group, N slots of a row, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from allmem.layout import Layout
from allmem.mixers.layer import LayerMixer, LayerState
from allmem.models.layer import Mix, MixedAttention
from allmem.models.modeling import AllMemForCausalLM

__all__ = ["FlatCall", "Group", "States", "read_flat"]


@dataclass(frozen=True)
class Group:
    """Sequences that are read together, one row each."""

    first: Tensor
    """[R] int64: the flat slot of each row's first token; the others follow it. Anything for a row
    that takes no token."""
    layout: Layout
    """Of the rows alone: it has no grid."""
    slots: Tensor
    """[R] int64, CPU: where the rows' states are kept. On the device as well, as ``first``, for
    states that are found ``BySlot``."""
    mix: Mix = LayerMixer.forward
    memo: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)
    """What the states' keeper works out once for all layers."""

    @cached_property
    def index(self) -> Tensor:
        """[R, N] int64, device: the flat slot of every slot of a row; of padding, some slot."""
        if self.layout.slots == 1 and self.layout.full:
            return self.first[:, None].to(self.layout.device)
        offsets = torch.arange(self.layout.slots)[None]
        offsets = offsets.minimum((self.layout.lengths - 1).clamp_min(0)[:, None])
        taken = self.layout.lengths > 0
        return (torch.where(taken, self.first, 0)[:, None] + offsets).to(self.layout.device)

    def gather(self, flat: Tensor) -> Tensor:
        """Flat [K, ...] to rows [R, N, ...]; padding slots repeat some token."""
        return flat[self.index]

    @cached_property
    def places(self) -> Tensor:
        """``slots`` on the device."""
        return self.slots.to(self.layout.device)

    def take(self, mixed: LayerMixer, pool: LayerState) -> LayerState:
        """The rows' states in one layer, out of those of all slots, [P, ...]; those parts of them
        that the layer finds by slot are not copied."""
        if self.mix is LayerMixer.forward:
            return mixed.rows_of(pool, self.places, self.layout)
        return pool.select(self.places)

    def put(self, pool: LayerState, state: LayerState) -> None:
        """Bring what the call left behind back to where ``take`` found it."""
        kept = pool.tensors()
        for name, tensor in state.tensors().items():
            if tensor is not kept[name]:
                kept[name].index_copy_(0, self.places.to(tensor.device), tensor)

    def scatter(self, rows: Tensor, flat: Tensor) -> None:
        """Write rows [R, N, ...] into flat [K, ...], but for padding."""
        if self.layout.full:
            flat[self.index] = rows
        else:
            flat[self.index[self.layout.valid]] = rows[self.layout.valid]


class States(Protocol):
    """Where a server keeps the states of its sequences."""

    def take(self, mixed: LayerMixer, layer: int, group: Group) -> LayerState:
        """The states of a group's rows in one layer, which the call may consume."""

    def put(self, mixed: LayerMixer, layer: int, group: Group, state: LayerState) -> None:
        """Keep what the call left behind. ``state`` may lie where ``take`` found it."""


@dataclass(frozen=True)
class FlatCall:
    """A call on its way through the decoder layers, as ``allmem.models.layer.Call``."""

    groups: Sequence[Group]
    states: States

    def read(
        self,
        mixed: MixedAttention,
        hidden_states: Tensor,
        table: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """What a layer makes of hidden states [1, K, D]; zero in slots of no group."""
        flat = hidden_states[0]
        mixed_flat = torch.zeros_like(flat)
        for group in self.groups:
            state = self.states.take(mixed, mixed.layer, group)
            y, after = group.mix(mixed, group.gather(flat), state, group.layout)
            self.states.put(mixed, mixed.layer, group, after)
            group.scatter(y.to(flat.dtype), mixed_flat)
        return mixed_flat[None]


def read_flat(
    model: AllMemForCausalLM,
    ids: Tensor,
    groups: Sequence[Group],
    states: States,
    keep: Tensor,
) -> Tensor:
    """Read tokens of many sequences, and predict the next ones of some.

    Args:
        ids: [K] int64.
        keep: [P] int64, the flat slots after which to predict.

    Returns:
        Logits [P, V].
    """
    output = model.base(
        input_ids=ids[None],
        use_cache=False,
        logits_to_keep=keep,
        allmem_call=FlatCall(groups, states),
    )
    logits: Tensor = output.logits[0]
    return logits
