"""Single tokens by graphs, with a stand-in for the capture that runs a step again at every replay,
on the same tensors, as a graph does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from allmem import AllMemError
from allmem.kernels import use_kernels
from allmem.models import decoding
from allmem.models.decoding import use_decoding
from allmem.serving.graphs import GraphedStep
from allmem.serving.pool import StatePool
from allmem.serving.scheduler import Scheduler
from tests.models.test_decoding import PATTERNS, Captures, captures
from tests.models.tiny import C, tiny_model
from tests.serving.test_scheduler import check, requests, served
from tests.serving.vllm.serving import calm_model

__all__ = ["captures"]


def scheduler_of(model: Any, slots: int, **options: Any) -> Scheduler:
    with use_decoding("graph"):
        return Scheduler(model, slots, 2 * C + 1, **options)


@pytest.mark.parametrize("name", PATTERNS)
def test_tokens_are_those_of_generate(name: str, captures: Captures) -> None:
    model = tiny_model("llama", dtype=torch.float64, **PATTERNS[name])
    check(model, scheduler_of(model, 3), requests(6))
    assert captures.replayed > captures.made


@pytest.mark.parametrize("slots", [1, 2, 5, 16], ids=lambda n: f"slots{n}")
def test_tokens_are_those_of_generate_however_they_are_batched(
    slots: int, captures: Captures
) -> None:
    model = tiny_model("qwen3", dtype=torch.float64)
    check(model, scheduler_of(model, slots), requests(12, seed=slots))
    # One row, two, four, ... or all slots; with a chunk that ends, and without.
    sizes = {min(1 << n, slots) for n in range(5)}
    assert captures.made <= 2 * len(sizes)


def test_one_slot_more_than_sequences(captures: Captures) -> None:
    model = tiny_model("llama", dtype=torch.float64)
    plain, graphed = Scheduler(model, 3, C), scheduler_of(model, 3)
    assert graphed.pool.nbytes * 3 == plain.pool.nbytes * 4
    served(graphed, requests(5))
    assert sorted(graphed._free) == [0, 1, 2]


def test_no_number_of_a_step_is_read_back(captures: Captures) -> None:
    """A tensor without content cannot be: reading it is an error."""
    model = tiny_model("llama", dtype=torch.float64)
    step = GraphedStep(model, StatePool(model, 4).by_slot, 3, 3)
    given = torch.tensor([7, 8, 9]), torch.tensor([C - 1, 3, 0]), torch.tensor([2, 0, 1])
    with torch.no_grad():
        # What is kept for each device is made.
        step.step(*given)
    for closing in {frozenset[int](), step.periods}:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            step._run(3, closing)


def test_layers_that_keep_everything_are_read_eagerly(captures: Captures) -> None:
    decoding._say.cache_clear()
    model = tiny_model("llama", dtype=torch.float64, mixers="full,allmem")
    with pytest.warns(RuntimeWarning, match="decides on the CPU"):
        scheduler = scheduler_of(model, 3)
    check(model, scheduler, requests(3))
    assert captures.made == 0


def test_a_graph_without_a_gpu() -> None:
    with pytest.raises(AllMemError, match="needs a CUDA device, and the input is on cpu"):
        scheduler_of(tiny_model("llama"), 2)


@pytest.mark.gpu
@pytest.mark.parametrize("kernels", ["torch", "triton"])
def test_on_a_gpu(kernels: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    model = calm_model().to("cuda", torch.float32)
    with torch.inference_mode(), use_kernels(kernels):
        graphed = served(scheduler_of(model, 3), requests(6))
    plain = served(Scheduler(model, 3, 2 * C + 1), requests(6))
    for one, other in zip(graphed, plain, strict=True):
        assert [token.id for token in one] == [token.id for token in other]
        logprobs = [[token.logprob for token in answer] for answer in (one, other)]
        assert logprobs[0] == pytest.approx(logprobs[1], abs=1e-3)
