"""The mixing of a layer, attention and memory, for one token of every sequence, in the code that
``torch.compile`` makes of it.

Compiled code is kept with guards, by which torch sees before every call whether it still fits.
Those on a layer's modules and on global names took 0.8 ms in each call, a third of the time of
SmolLM2's layers on a CPU, so they are left out: code is kept for each kind of layer instead
(``kind_of``) and each setting of the switches, and only the guards on what differs from call to
call are left, on states, shapes and modes. A layer is looked at once: options that are changed in
place afterwards go unnoticed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from allmem.config import WindowConfig
from allmem.errors import AllMemError
from allmem.kernels import asked_for
from allmem.layout import Layout
from allmem.mixers.layer import LayerMixer, LayerState
from allmem.models.cpu_products import one_token_products
from allmem.switch import settings
from allmem.token_layout import TokenLayout

__all__ = ["compiled_mix", "compiling", "kind_of"]

VARIANTS = 64
"""Of the code of a kind of layers, before torch gives up: for other numbers of sequences, windows
and chunks, and for the calls in which chunks end."""
OF_EVERY_MODULE = frozenset(vars(nn.Module()))
OF_ITS_PLACE = frozenset(("layer", "layer_idx"))
"""A layer's number: what it computes is told by its other attributes."""


def compiled_mix(
    mixed: LayerMixer, x: Tensor, state: LayerState, layout: Layout
) -> tuple[Tensor, LayerState]:
    """``LayerMixer.forward`` without gradients, for a ``TokenLayout``.

    Raises:
        AllMemError: if there is no compiler.
    """
    assert isinstance(layout, TokenLayout)
    mix = _compiled(kind_of(mixed), settings(), asked_for("triton"), asked_for("fla"))
    with one_token_products(x):
        return mix(mixed, x, state, layout.start, layout.window, layout.chunk, layout.closing)


@contextmanager
def compiling() -> Iterator[None]:
    """Around a call whose layers are compiled.

    Raises:
        AllMemError: if there is no compiler.
    """
    try:
        with torch._dynamo.config.patch(recompile_limit=VARIANTS):
            yield
    except Exception as error:
        # Here, since a step that succeeds has no use for it.
        from torch._inductor.exc import InvalidCxxCompiler

        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, InvalidCxxCompiler):
            cause = getattr(cause, "inner_exception", None) or cause.__cause__
        if cause is None:
            raise
        raise AllMemError(
            "decoding = 'compiled' needs a C++ compiler on a CPU, and none was found: install g++ "
            "(or name one in the environment as CXX), or choose decoding = 'eager'"
        ) from error


_kinds: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


def kind_of(mixed: LayerMixer) -> str:
    """A hash of all that decides what a layer computes, but for numbers in tensors: layers of one
    kind share their code."""
    if mixed not in _kinds:
        seen = hashlib.sha256()
        for name, module in mixed.named_modules():
            seen.update(f"{name}: {type(module).__module__}.{type(module).__qualname__}\n".encode())
            own = {**vars(module), "training": module.training}
            for key in sorted(set(own) - (OF_EVERY_MODULE - {"training"}) - OF_ITS_PLACE):
                seen.update(f"{key} = {_told(own[key])}\n".encode())
            for key, tensor in module.named_parameters(recurse=False):
                seen.update(f"{key}: {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        _kinds[mixed] = seen.hexdigest()[:16]
    return _kinds[mixed]


def _told(value: object) -> str:
    """A value by what it holds, where it would tell its address; what it keeps for itself aside."""
    if type(value).__repr__ is not object.__repr__:
        return repr(value)
    held = {name: _told(v) for name, v in vars(value).items() if not name.startswith("_")}
    return f"{type(value).__qualname__}: {held}"


@cache
def _compiled(
    kind: str, *_: Hashable, backend: str = "inductor"
) -> Callable[..., tuple[Tensor, LayerState]]:
    # Torch keeps compiled code with the code that it was made of: each kind has a copy of its own.
    code = _mix.__code__.replace(co_name=f"mix_{kind}")
    return torch.compile(
        FunctionType(code, _mix.__globals__),
        fullgraph=True,
        dynamic=False,
        backend=backend,
        options={"guard_filter_fn": _of_the_call},
    )


def _of_the_call(guards: Sequence[Any]) -> list[bool]:
    return [not (guard.is_global or re.match(r"mixed\b", guard.name)) for guard in guards]


def _mix(
    mixed: LayerMixer,
    x: Tensor,
    state: LayerState,
    start: Tensor,
    window: WindowConfig | None,
    chunk: int | None,
    closing: frozenset[int],
) -> tuple[Tensor, LayerState]:
    # The layout is made here: its masks are then fused with what needs them.
    layout = TokenLayout.next_of(start, window, chunk, closing)
    return LayerMixer.forward(mixed, x, state, layout)
