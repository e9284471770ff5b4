"""What one sequence leaves behind, as a value: a dataclass of tensors whose first dimension is the
batch.

Every mixer's state derives from ``State`` and so can be counted, copied, reordered and written to a
file by the same few lines, whatever it holds. A forward call *consumes* the state that it is given
(without gradients it may write into it); ``clone`` first to keep it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from allmem.errors import AllMemError

__all__ = ["Slots", "State", "may_write", "write_into"]


@dataclass(frozen=True, eq=False)
class Slots:
    """Which rows a call is about, beside tensors of all rows of a pool: they are read and written
    where they lie, without a copy. Not a tensor of a state, so it is neither counted nor kept."""

    index: Tensor
    """[R] int64, device; none twice, but for rows whose state nobody will read."""


class State:
    """Base of all states. Subclasses are dataclasses whose fields are tensors, other states,
    dictionaries of either, or ``None``; every tensor is [R, ...]."""

    def _fields(self) -> list[tuple[str, Any]]:
        return [(f.name, getattr(self, f.name)) for f in dataclasses.fields(self)]  # type: ignore[arg-type]

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by dotted name, in a fixed order."""
        found: dict[str, Tensor] = {}
        for name, value in self._fields():
            found |= _flat(name, value)
        return found

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        """The same structure around other tensors, by the names that ``tensors`` gives.

        Raises:
            AllMemError: if a name is missing.
        """

        def take(name: str, value: Any) -> Any:
            if isinstance(value, dict):
                return {k: take(f"{name}.{k}", v) for k, v in value.items()}
            if isinstance(value, State):
                inner = {k: take(f"{name}.{k}", t) for k, t in value.tensors().items()}
                return value.with_tensors(inner)
            if isinstance(value, Tensor):
                if name not in tensors:
                    raise AllMemError(f"the state lacks the tensor {name!r}")
                return tensors[name]
            return value

        changes = {name: take(name, value) for name, value in self._fields()}
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """A state with ``function`` applied to every tensor."""
        return self.with_tensors({k: function(v) for k, v in self.tensors().items()})

    def select(self, rows: Tensor) -> Self:
        """The rows ``rows`` [R'] int64, in that order; copies."""
        return self.map(lambda t: t.index_select(0, rows.to(t.device)))

    def repeat(self, times: int) -> Self:
        """Every row ``times`` times, next to one another; copies."""
        return self.map(lambda t: t.repeat_interleave(times, dim=0))

    def clone(self) -> Self:
        return self.map(torch.clone)

    def detach(self) -> Self:
        return self.map(torch.Tensor.detach)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.numel() * t.element_size() for t in self.tensors().values())


def _flat(name: str, value: Any) -> dict[str, Tensor]:
    """The tensors of a field by dotted name."""
    if isinstance(value, Tensor):
        return {name: value}
    parts = value.tensors() if isinstance(value, State) else value
    found: dict[str, Tensor] = {}
    if isinstance(parts, dict):
        for key, part in parts.items():
            found |= _flat(f"{name}.{key}", part)
    return found


def may_write(tensor: Tensor) -> bool:
    """Whether a forward call may write into a tensor of the state that it consumes: not where
    autograd needs the old values, nor where the tensor was born in an inference mode that has
    ended."""
    if torch.is_grad_enabled():
        return False
    # A compiled step is given states that are its own.
    compiling = torch.compiler.is_compiling()
    return compiling or torch.is_inference_mode_enabled() or not tensor.is_inference()


def write_into(state: State, after: State) -> None:
    """Bring ``state`` to the values of ``after``, of which some may lie in its own tensors."""
    mine, other = state.tensors(), after.tensors()
    own = {t.data_ptr() for t in mine.values()}
    moved = {name: t for name, t in other.items() if t.data_ptr() != mine[name].data_ptr()}
    # What lies in another one's place must be read before that is written.
    moved = {name: t.clone() if t.data_ptr() in own else t for name, t in moved.items()}
    for name, t in moved.items():
        mine[name].copy_(t)
