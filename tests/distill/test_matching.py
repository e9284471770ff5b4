"""Matching and solving: local losses, equal to what their definitions say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from allmem.distill.matching import match_layers
from allmem.distill.solving import ReadoutSolver, _write_low_rank
from allmem.layout import Layout
from allmem.memory.projections import LowRank
from allmem.models.layer import MixedAttention
from allmem.models.modeling import AllMemForCausalLM
from tests.distill.tiny import T, W, make_model, make_text

Stream = dict[int, tuple[Tensor, Tensor]]


def teacher_stream(model: AllMemForCausalLM, ids: Tensor) -> Stream:
    """(x, full attention's output) of every layer."""
    seen: Stream = {}

    def observe(mixed: MixedAttention, x: Tensor, full: Tensor, layout: Layout) -> None:
        seen[mixed.layer] = (x.clone(), full.clone())

    with torch.no_grad():
        model.hidden_states(ids, full_attention=True, observe=observe)
    return seen


def naive_loss(model: AllMemForCausalLM, ids: Tensor) -> Tensor:
    """The sum of all layers' losses, with one graph through everything."""
    total = torch.zeros((), dtype=torch.float64)
    for layer, (x, full) in teacher_stream(model, ids).items():
        mixed = model.mixers()[layer]
        layout = Layout.dense(0, *ids.shape, ids.device)
        state = mixed.init_state(len(ids), x.dtype, x.device)
        both, _ = super(MixedAttention, mixed).forward(x, state, layout)
        state = mixed.init_state(len(ids), x.dtype, x.device)
        window, _ = mixed.attention(x, state.attention, layout)
        lost = (full - window)[:, W:]
        total = total + ((both - full)[:, W:]).square().sum() / lost.square().sum()
    return total


@pytest.mark.parametrize("projections", ["full", "lowrank", "shared"])
def test_matching_gives_the_gradients_of_the_naive_formulation(projections: str) -> None:
    model = make_model(memory={"projections": projections, "rank": 3})
    model.freeze_base()
    ids = make_text(2 * T).view(2, T)
    losses = match_layers(model, ids, W)
    found = {name: p.grad for name, p in model.memory_parameters().items()}
    expected_loss = naive_loss(model, ids)
    expected = torch.autograd.grad(expected_loss, list(model.memory_parameters().values()))
    torch.testing.assert_close(sum(losses.values()), float(expected_loss.detach()))
    for (name, gradient), right in zip(found.items(), expected, strict=True):
        assert gradient is not None, name
        torch.testing.assert_close(gradient, right, rtol=1e-7, atol=1e-10, msg=name)


def test_a_silent_memory_has_an_error_of_one() -> None:
    model = make_model(random=False)
    model.freeze_base()
    losses = match_layers(model, make_text(T)[None], W)
    torch.testing.assert_close(list(losses.values()), [1.0, 1.0])


def test_layers_without_a_memory_are_left_alone() -> None:
    model = make_model(mixers="window,allmem")
    model.freeze_base()
    assert list(match_layers(model, make_text(T)[None], W)) == [1]
    assert list(ReadoutSolver(W).step(model, make_text(T)[None])) == [1]


@pytest.mark.parametrize("projections", ["full", "lowrank", "shared"])
def test_solving_finds_the_least_error(projections: str) -> None:
    model = make_model(memory={"projections": projections, "rank": 24, "gate": False})
    model.freeze_base()
    ids = make_text(8 * T).view(8, T)
    before = ReadoutSolver(W, ridge=1e-9).step(model, ids)
    after = match_layers(model, ids, W)
    gradients = {n: p.grad for n, p in model.memory_parameters().items() if ".o." in n}
    assert gradients
    for layer, error in after.items():
        assert error < min(before[layer], 1.0)
    # At the least error the output projection has no gradient left.
    for name, gradient in gradients.items():
        assert gradient is not None
        assert gradient.abs().max() < 1e-6, name


def test_solving_twice_is_solving_on_both() -> None:
    first, second = make_text(4 * T).view(2, 2, T)
    parts, whole = make_model(), make_model()
    solver = ReadoutSolver(W)
    solver.step(parts, first)
    solver.step(parts, second)
    ReadoutSolver(W).step(whole, torch.cat([first, second]))
    for name, parameter in parts.memory_parameters().items():
        torch.testing.assert_close(parameter, whole.memory_parameters()[name], rtol=1e-5, atol=1e-7)


def test_a_low_rank_projection_gets_the_best_map_of_its_rank() -> None:
    reads, lost = (torch.randn(50, n, dtype=torch.float64) for n in (7, 9))
    best = torch.linalg.lstsq(reads, lost).solution
    spectrum = torch.linalg.svdvals(reads @ best).square()
    for rank in (1, 3, 7):
        projection = LowRank(7, 9, rank).double().requires_grad_(False)
        _write_low_rank(projection, best, reads.mT @ reads)
        error = (projection(reads) - lost).square().sum()
        # Eckart and Young: what is left are the squared singular values that were cut.
        expected = (reads @ best - lost).square().sum() + spectrum[rank:].sum()
        torch.testing.assert_close(error, expected)
