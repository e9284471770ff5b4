"""How a model reads one token of every sequence, the step of generation, without gradients.

    eager      operation by operation; everywhere, and at once
    compiled   the mixing of a layer, attention and memory, in fused code that ``torch.compile``
               makes: once for all layers that are alike, in some ten seconds, for every number of
               sequences anew. On a CPU it needs a C++ compiler.
    graph      the whole step as a CUDA graph, captured once for a cache: launches cost nothing

``use_decoding("compiled")``, or ALLMEM_DECODING=compiled in the environment, asks for one of them,
or with a comma for both of the last: a graph of compiled layers. Compiled code rounds otherwise.
What decides on the CPU how it goes on cannot be read so (layers with full attention, a memory that
writes what the window has lost, ...): models with such layers are read eagerly, which is said once.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from allmem.errors import AllMemError, unknown_name
from allmem.layout import Layout
from allmem.mixers.layer import LayerMixer, LayerState
from allmem.models.compiled import compiled_mix
from allmem.models.layer import Call
from allmem.state import write_into
from allmem.switch import Switch
from allmem.token_layout import TokenLayout, periods_that_end

if TYPE_CHECKING:
    from allmem.models.modeling import AllMemForCausalLM

__all__ = [
    "DECODING",
    "VARIABLE",
    "GraphedDecoder",
    "asked_for",
    "capture",
    "chosen",
    "periods_of",
    "use_decoding",
]

DECODING = ("eager", "compiled", "graph")
VARIABLE = "ALLMEM_DECODING"
WARM_UP = 2
"""Steps before a capture, in which libraries allocate and kernels are compiled."""


@cache
def _read(names: str) -> frozenset[str]:
    chosen = frozenset(name.strip() for name in names.split(","))
    for name in chosen:
        if name not in DECODING:
            raise AllMemError(unknown_name("decoding", name, DECODING))
    return chosen - {"eager"}


_switch = Switch(_read)
use_decoding = _switch.use
"""How models read single tokens inside the block, by name, or two with a comma between them.

Raises:
    AllMemError: if there is no such way.
"""


def asked_for() -> frozenset[str]:
    """Of ``compiled`` and ``graph`` those that were asked for.

    Raises:
        AllMemError: if the environment names an unknown way.
    """
    if _switch.forced is not None:
        return _switch.forced
    return _read(os.environ.get(VARIABLE, "eager"))


def chosen(model: AllMemForCausalLM, layout: Layout) -> frozenset[str]:
    """In which of the ways that were asked for a call is read.

    Raises:
        AllMemError: if a graph is asked for where there is no CUDA device.
    """
    one_token = layout.slots == 1 and layout.full and layout.source is None
    if not one_token or torch.is_grad_enabled():
        return frozenset()
    how = asked_for()
    if "graph" in how and not can_capture(layout.device):
        raise AllMemError(
            f"decoding = 'graph' needs a CUDA device, and the input is on {layout.device}; choose "
            "'compiled' or 'eager'"
        )
    if how:
        for mixed in model.mixers():
            if mixed.periods(layout) is None:
                _say(", ".join(sorted(how)), mixed.layer, _kind(mixed))
                return frozenset()
    return how


def can_capture(device: torch.device) -> bool:
    """Whether a device has graphs."""
    return device.type == "cuda"


def _kind(mixed: LayerMixer) -> str:
    parts = [mixed.attention] if mixed.memory is None else [mixed.attention, mixed.memory]
    return " with ".join(type(part).__name__ for part in parts)


@cache
def _say(how: str, layer: int, kind: str) -> None:
    warnings.warn(
        f"decoding was asked to be {how}, but layer {layer} ({kind}) decides on the CPU how it "
        "goes on; single tokens are read eagerly",
        RuntimeWarning,
        stacklevel=3,
    )


def one_token_call(
    model: AllMemForCausalLM, layout: Layout, states: list[LayerState], how: frozenset[str]
) -> Call:
    """The call that ``layout`` describes, without a decision on the CPU."""
    closing = periods_that_end(periods_of(model, layout), layout.start)
    if not torch.is_inference_mode_enabled():
        # What was born in an inference mode may not be written outside of it.
        states = [
            state.clone() if any(t.is_inference() for t in state.tensors().values()) else state
            for state in states
        ]
    return _call(layout.start.to(layout.device), layout, closing, states, how)


def _call(
    start: Tensor,
    like: Layout,
    closing: frozenset[int],
    states: list[LayerState],
    how: frozenset[str],
) -> Call:
    """The next token of rows of which ``start`` [R] were read, with ``like``'s window and chunk."""
    layout = TokenLayout.next_of(start, like.window, like.chunk, closing)
    return Call(layout, states, mix=compiled_mix if "compiled" in how else None)


def periods_of(model: AllMemForCausalLM, layout: Layout) -> frozenset[int]:
    """The ``periods`` of all layers that have some."""
    found = [mixed.periods(layout) for mixed in model.mixers()]
    return frozenset().union(*(periods for periods in found if periods is not None))


# Graphs


class GraphedDecoder:
    """The states of one cache, at addresses that stay, and the graphs that write them: one for the
    steps in which no chunk ends, and one for each set of chunks that end together.

    Args:
        model: that reads.
        states: of the cache; copied.
        layout: of a call, for its device, window and chunk.
        how: as ``chosen`` says.
    """

    def __init__(
        self,
        model: AllMemForCausalLM,
        states: list[LayerState],
        layout: Layout,
        how: frozenset[str],
    ) -> None:
        self.model = model
        self.like = layout
        self.how = how
        self.periods = periods_of(model, layout)
        self.states = [state.clone() for state in states]
        self.start = torch.zeros(layout.rows, dtype=torch.int64, device=layout.device)
        self.ids = torch.zeros(layout.rows, 1, dtype=torch.int64, device=layout.device)
        self.graphs: dict[frozenset[int], tuple[Callable[[], None], Tensor]] = {}

    def adopt(self, states: list[LayerState]) -> bool:
        """Take over other states; whether they have the same shapes."""
        if states is self.states:
            return True
        if [_shapes(state) for state in states] != [_shapes(state) for state in self.states]:
            return False
        for mine, other in zip(self.states, states, strict=True):
            write_into(mine, other)
        return True

    def step(self, ids: Tensor, layout: Layout) -> Tensor:
        """Read ``ids`` [R, 1]; logits [R, 1, V]."""
        closing = periods_that_end(self.periods, layout.start)
        self.ids.copy_(ids)
        self.start.copy_(layout.start)
        if closing not in self.graphs:
            self.graphs[closing] = capture(lambda states: self._run(states, closing), self.states)
        replay, logits = self.graphs[closing]
        replay()
        # The graphs write the same memory again and again.
        return logits.clone()

    def _run(self, states: list[LayerState], closing: frozenset[int]) -> Tensor:
        call = _call(self.start, self.like, closing, states, self.how)
        output = self.model.base(
            input_ids=self.ids, use_cache=False, logits_to_keep=1, allmem_call=call
        )
        for mine, after in zip(states, call.take_states(), strict=True):
            write_into(mine, after)
        logits: Tensor = output.logits
        return logits


def capture(
    run: Callable[[list[LayerState]], Tensor], states: list[LayerState]
) -> tuple[Callable[[], None], Tensor]:
    """A function that does what ``run`` does with ``states``, and where it leaves its result.

    What ``run`` writes besides, it writes before, too: copies of ``states`` are warmed up with.
    """
    now, aside = torch.cuda.current_stream(), torch.cuda.Stream()
    aside.wait_stream(now)
    with torch.cuda.stream(aside):
        for _ in range(WARM_UP):
            run([state.clone() for state in states])
    now.wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run(states)
    return graph.replay, result


def _shapes(state: LayerState) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in state.tensors().items()}
