"""Single tokens of sequences in slots that lie apart, read and written there by our kernels: in
triton's interpreter on a CPU, where they compute in float64 as torch does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from allmem.attention import kernels as attention_kernels
from allmem.kernels import use_kernels
from allmem.memory import kernels as memory_kernels
from allmem.memory.state import MemoryState
from allmem.models.flat import Group, read_flat
from allmem.serving.engine import GenerationRequest
from allmem.serving.pool import StatePool
from allmem.serving.scheduler import Scheduler
from allmem.state import State
from allmem.token_layout import TokenLayout
from tests.interpreter import interpreting
from tests.models.tiny import C, S, W, text, tiny_model
from tests.serving.test_scheduler import GREEDY, alone, served

pytest.importorskip("triton", reason="triton is not installed")

APART = [1, 4]
"""Slots that are no neighbours."""


@pytest.fixture(scope="module")
def interpreter() -> Iterator[None]:
    if torch.cuda.is_available():
        pytest.skip("the interpreter leaves its mark on triton's modules")
    with interpreting():
        yield


def scattered(model: Any, **options: Any) -> Scheduler:
    scheduler = Scheduler(model, APART[-1] + 1, 4 * W, **options)
    scheduler._free = list(APART)
    return scheduler


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which tensors of states are copied out of a pool."""
    names: list[str] = []
    real = State.select

    def select(self: State, rows: Tensor) -> State:
        names.extend(f"{type(self).__name__}.{name}" for name in self.tensors())
        return real(self, rows)

    monkeypatch.setattr(State, "select", select)
    return names


OPTIONS: dict[str, dict[str, Any]] = {
    "llama": {"name": "llama"},
    "one local layer, no sinks": {"name": "gemma3", "sinks": 0},
    "window, linear network": {
        "name": "llama",
        "mixers": "window,allmem",
        "memory": {"network": "linear", "chunk": C, "norm": "post_update"},
    },
}


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(options, id=name, marks=() if name == "llama" else pytest.mark.slow)
        for name, options in OPTIONS.items()
    ],
)
def test_tokens_are_those_of_generate(
    options: dict[str, Any], interpreter: None, copied: list[str]
) -> None:
    model = tiny_model(dtype=torch.float64, **options)
    # One begins within its sinks, one turns its window over, and a slot is taken twice.
    asked = [
        GenerationRequest(tuple(text(1, length, seed=length)[0].tolist()), count, GREEDY)
        for length, count in ((2 * W + 1, C + 2), (1, C), (S, 2))
    ]
    with use_kernels("triton"):
        answers = served(scattered(model), asked)
    assert copied == []
    for request, answer in zip(asked, answers, strict=True):
        assert [token.id for token in answer] == alone(model, request)[0]


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        ({"mixers": "lact", "mixer_options": {"lact": {"chunk": C}}}, {"UnitState"}),
        ({"mixers": "ahn_deltanet"}, {"RingState", "EvictedState"}),
        (
            {"mixers": "titans", "mixer_options": {"titans": {"fusion": "context"}}},
            {"LayerState"},
        ),
    ],
    ids=["muon", "a memory that looks into the window", "reads in the context"],
)
def test_what_cannot_be_found_by_slot_is_copied(
    options: dict[str, Any], kinds: set[str], interpreter: None, copied: list[str]
) -> None:
    model = tiny_model("llama", dtype=torch.float64, **options)
    pool = StatePool(model, 6)
    group = Group(
        torch.tensor([0, 1]),
        TokenLayout.next_of(torch.tensor([3, 4]), closing=frozenset((C,))),
        torch.tensor([4, 1]),
    )
    with torch.no_grad(), use_kernels("triton"):
        for mixed in model.mixers():
            pool.take(mixed, mixed.layer, group)
    assert {name.split(".")[0] for name in copied} == kinds


def test_the_other_slots_keep_their_bits(interpreter: None) -> None:
    model = tiny_model("llama", dtype=torch.float64)
    pool = StatePool(model, 6)
    for state in pool._states:
        state.map(lambda t: t.normal_())
    before = [state.clone().tensors() for state in pool._states]
    start = torch.tensor([2 * C - 1, 3 * W])
    closing = frozenset((C,))
    slots, others = torch.tensor([4, 1]), [0, 2, 3, 5]
    group = Group(torch.tensor([0, 1]), TokenLayout.next_of(start, closing=closing), slots)
    with torch.no_grad(), use_kernels("triton"):
        read_flat(model, text(1, 2)[0], [group], pool, torch.tensor([0, 1]))
    for state, old in zip(pool._states, before, strict=True):
        for name, tensor in state.tensors().items():
            assert torch.equal(tensor[others], old[name][others]), name
            changed = (tensor[slots] != old[name][slots]).flatten(1).any(1).tolist()
            only_writes = name.startswith(("memory.memory.weights", "memory.memory.momentum"))
            assert changed == [True, not only_writes], name


@pytest.mark.parametrize("closing", [frozenset[int](), frozenset((C,))], ids=["open", "closing"])
def test_no_number_of_a_step_is_read_back(
    closing: frozenset[int], interpreter: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tensor without content cannot be: reading it is an error. What kernels do with theirs is
    left out."""
    model = tiny_model("llama", dtype=torch.float64)
    pool = StatePool(model, 6)
    ids, keep = text(1, 2)[0], torch.tensor([0, 1])
    start, slots = torch.tensor([7, 40]), torch.tensor([4, 1])
    called: list[str] = []

    def decode_step(network: Any, q: Tensor, *_: Any) -> Tensor:
        called.append("decode_step")
        return torch.empty_like(q)

    def write(state: MemoryState, *_: Any, in_place: bool) -> MemoryState:
        called.append("write")
        return state

    def attend(q: Tensor, *arguments: Any, scale: float) -> tuple[Tensor, State]:
        called.append("attend")
        return torch.empty_like(q), arguments[3]

    monkeypatch.setattr(memory_kernels, "decode_step", decode_step)
    monkeypatch.setattr(memory_kernels, "write", write)
    monkeypatch.setattr(attention_kernels, "window_attention", attend)
    with torch.no_grad(), use_kernels("triton"):
        for mode in (torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True)):
            called.clear()
            group = Group(torch.tensor([0, 1]), TokenLayout.next_of(start, closing=closing), slots)
            with mode:
                read_flat(model, ids, [group], pool.by_slot, keep)
    assert called == ["attend", "decode_step", *(["write"] if closing else [])] * 2
