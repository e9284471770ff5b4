"""What one sequence leaves behind, as a value: a dataclass of tensors whose first dimension is the
batch.

Every mixer's state derives from ``State`` and so can be counted, copied, reordered and written to a
file by the same few lines, whatever it holds. A forward call *consumes* the state that it is given
(without gradients it may write into it); ``clone`` first to keep it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor

from allmem.errors import AllMemError

__all__ = ["State", "may_write"]


class State:
    """Base of all states. Subclasses are dataclasses whose fields are tensors, dictionaries of
    tensors, other states, or ``None``; every tensor is [R, ...]."""

    def _fields(self) -> list[tuple[str, Any]]:
        return [(f.name, getattr(self, f.name)) for f in dataclasses.fields(self)]  # type: ignore[arg-type]

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by dotted name, in a fixed order."""
        found: dict[str, Tensor] = {}
        for name, value in self._fields():
            if isinstance(value, Tensor):
                found[name] = value
            elif isinstance(value, State):
                found |= {f"{name}.{k}": v for k, v in value.tensors().items()}
            elif isinstance(value, dict):
                found |= {f"{name}.{k}": v for k, v in value.items()}
        return found

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        """The same structure around other tensors, by the names that ``tensors`` gives.

        Raises:
            AllMemError: if a name is missing.
        """

        def take(name: str) -> Tensor:
            if name not in tensors:
                raise AllMemError(f"the state lacks the tensor {name!r}")
            return tensors[name]

        changes: dict[str, Any] = {}
        for name, value in self._fields():
            if isinstance(value, Tensor):
                changes[name] = take(name)
            elif isinstance(value, State):
                inner = {k: take(f"{name}.{k}") for k in value.tensors()}
                changes[name] = value.with_tensors(inner)
            elif isinstance(value, dict):
                changes[name] = {k: take(f"{name}.{k}") for k in value}
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


def may_write(tensor: Tensor) -> bool:
    """Whether a forward call may write into a tensor of the state that it consumes: not where
    autograd needs the old values, nor where the tensor was born in an inference mode that has
    ended."""
    if torch.is_grad_enabled():
        return False
    return torch.is_inference_mode_enabled() or not tensor.is_inference()
