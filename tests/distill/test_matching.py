"""Matching and solving: local losses, equal to what their definitions say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from allmem.config import WindowConfig
from allmem.data.labels import IGNORED
from allmem.distill.matching import Matched, match_layers
from allmem.distill.rows import counted
from allmem.distill.segments import unpack
from allmem.distill.solving import ReadoutSolver, _write_low_rank
from allmem.layout import Layout
from allmem.memory.projections import LowRank
from allmem.models.cache import AllMemCache
from allmem.models.layer import MixedAttention
from allmem.models.modeling import AllMemForCausalLM
from tests.distill.tiny import C, S, T, W, make_batch, make_model, make_packed, make_text

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
        lost = (full - window)[:, W:-1]
        total = total + ((both - full)[:, W:-1]).square().sum() / lost.square().sum()
    return total


def matched(model: AllMemForCausalLM, ids: Tensor) -> Matched:
    return match_layers(model, *make_batch(ids), AllMemCache(model.config))


def solve(solver: ReadoutSolver, model: AllMemForCausalLM, ids: Tensor) -> dict[int, float]:
    return solver.step(model, *make_batch(ids), AllMemCache(model.config))


@pytest.mark.parametrize("projections", ["full", "lowrank", "shared"])
def test_matching_gives_the_gradients_of_the_naive_formulation(projections: str) -> None:
    model = make_model(memory={"projections": projections, "rank": 3})
    model.freeze_base()
    ids = make_text(2 * T).view(2, T)
    loss = matched(model, ids)
    loss.total.backward()
    found = {name: p.grad for name, p in model.memory_parameters().items()}
    # Two layers, and so many positions.
    expected_loss = naive_loss(model, ids) / 2 * 2 * (T - W - 1)
    expected = torch.autograd.grad(expected_loss, list(model.memory_parameters().values()))
    torch.testing.assert_close(loss.total, expected_loss)
    for (name, gradient), right in zip(found.items(), expected, strict=True):
        assert gradient is not None, name
        torch.testing.assert_close(gradient, right, rtol=1e-7, atol=1e-10, msg=name)


def test_a_silent_memory_has_an_error_of_one() -> None:
    model = make_model(random=False)
    model.freeze_base()
    losses = matched(model, make_text(T)[None]).layers
    torch.testing.assert_close(list(losses.values()), [1.0, 1.0])


def test_packed_documents_are_matched_as_if_alone() -> None:
    model = make_model()
    model.freeze_base()
    batch = make_packed()
    counts = counted(batch["labels"], batch["position_ids"], W)[:, 1:] != IGNORED
    match_layers(model, batch, counts, AllMemCache(model.config)).total.backward()
    found = {name: p.grad for name, p in model.memory_parameters().items()}
    seen: dict[int, Tensor] = {}
    alone = unpack({**batch, "labels": counted(batch["labels"], batch["position_ids"], W)})
    total = torch.zeros((), dtype=torch.float64)
    errors: dict[int, list[Tensor]] = {0: [], 1: []}
    for ids, labels, mask in zip(
        alone["input_ids"], alone["labels"], alone["attention_mask"], strict=True
    ):
        length = int(mask.sum())
        chosen = torch.cat([labels[1:length] != IGNORED, torch.tensor([False])])
        for layer, (x, full) in teacher_stream(model, ids[None, :length]).items():
            mixed = model.mixers()[layer]
            layout = Layout.dense(0, 1, length, ids.device)
            fresh = mixed.init_state(1, x.dtype, x.device)
            both, _ = super(MixedAttention, mixed).forward(x, fresh, layout)
            fresh = mixed.init_state(1, x.dtype, x.device)
            window, _ = mixed.attention(x, fresh.attention, layout)
            errors[layer].append((both - full)[0, chosen].square().sum())
            seen[layer] = seen.get(layer, 0) + (full - window)[0, chosen].square().sum()
    for layer, parts in errors.items():
        total = total + torch.stack(parts).sum() / seen[layer].detach()
    total = total / 2 * counts.sum()
    expected = torch.autograd.grad(total, list(model.memory_parameters().values()))
    for (name, gradient), right in zip(found.items(), expected, strict=True):
        assert gradient is not None, name
        torch.testing.assert_close(gradient, right, rtol=1e-7, atol=1e-10, msg=name)


def test_drawn_sizes_are_what_the_layers_read_with() -> None:
    model, other = make_model(), make_model()
    ids = make_text(2 * T).view(2, T)
    batch, counts = make_batch(ids)
    drawn = match_layers(model, batch, counts, AllMemCache(model.config, WindowConfig(7, 1), 3))
    own = matched(other, ids)
    assert (W, S, C) != (7, 1, 3)
    assert all(drawn.layers[i] != own.layers[i] for i in own.layers)


def test_layers_without_a_memory_are_left_alone() -> None:
    model = make_model(mixers="window,allmem")
    model.freeze_base()
    assert list(matched(model, make_text(T)[None]).layers) == [1]
    assert list(solve(ReadoutSolver(), model, make_text(T)[None])) == [1]


@pytest.mark.parametrize("projections", ["full", "lowrank", "shared"])
def test_solving_finds_the_least_error(projections: str) -> None:
    model = make_model(memory={"projections": projections, "rank": 24, "gate": False})
    model.freeze_base()
    ids = make_text(8 * T).view(8, T)
    before = solve(ReadoutSolver(ridge=1e-9), model, ids)
    loss = matched(model, ids)
    loss.total.backward()
    after = loss.layers
    gradients = {n: p.grad for n, p in model.memory_parameters().items() if ".o." in n}
    assert gradients
    for layer, error in after.items():
        assert error < min(before[layer], 1.0)
    # At the least error the output projection has no gradient left.
    for name, gradient in gradients.items():
        assert gradient is not None
        assert gradient.abs().max() < 1e-4, name


def test_solving_twice_is_solving_on_both() -> None:
    first, second = make_text(4 * T).view(2, 2, T)
    parts, whole = make_model(), make_model()
    solver = ReadoutSolver()
    solve(solver, parts, first)
    solve(solver, parts, second)
    solve(ReadoutSolver(), whole, torch.cat([first, second]))
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
