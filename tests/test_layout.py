"""Where tokens stand: from grids with padding, holes and documents to rows and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from allmem.errors import AllMemError
from allmem.layout import Layout, document_starts

CPU = torch.device("cpu")


@settings(max_examples=80, deadline=None)
@given(
    mask=st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=1, max_size=4),
    starts=st.lists(st.integers(0, 20), min_size=4, max_size=4),
)
def test_rows_hold_the_tokens_of_their_grid_row_in_order(
    mask: list[list[bool]], starts: list[int]
) -> None:
    grid_mask = torch.tensor(mask)
    start = torch.tensor(starts[: len(mask)])
    grid = torch.arange(grid_mask.numel()).view(grid_mask.shape)[..., None].float() + 1
    layout = Layout.from_grid(start, grid_mask, None, CPU)
    rows = layout.gather(grid)
    for r in range(len(mask)):
        expected = grid[r][grid_mask[r]]
        assert int(layout.lengths[r]) == len(expected)
        assert torch.equal(rows[r, : len(expected)], expected)
        positions = layout.positions[r, : len(expected)]
        assert torch.equal(positions, start[r] + torch.arange(len(expected)))
    back = layout.scatter(rows)
    assert torch.equal(back, torch.where(grid_mask[..., None], grid, 0))


def test_packed_documents_become_rows_that_start_at_zero() -> None:
    positions = torch.tensor([[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]])
    begins = document_starts(positions)
    assert begins is not None
    layout = Layout.from_grid(torch.zeros(2, dtype=torch.int64), None, begins, CPU)
    assert layout.lengths.tolist() == [3, 2, 1, 4]
    assert layout.start.tolist() == [0, 0, 0, 0]
    grid = torch.arange(10.0).view(2, 5, 1)
    assert layout.gather(grid)[3, :4, 0].tolist() == [6, 7, 8, 9]
    assert torch.equal(layout.scatter(layout.gather(grid)), grid)


def test_padding_before_a_document_does_not_begin_one() -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1, 1]])
    begins = torch.tensor([[1, 0, 0, 0, 1, 0]]).bool()
    layout = Layout.from_grid(torch.zeros(1, dtype=torch.int64), mask, begins, CPU)
    assert layout.lengths.tolist() == [2, 2]


def test_one_document_per_row_is_no_packing() -> None:
    assert document_starts(torch.arange(5)[None].expand(2, -1)) is None


def test_packing_cannot_continue_an_earlier_call() -> None:
    begins = torch.tensor([[True, False, True]])
    with pytest.raises(AllMemError, match="packed documents cannot continue"):
        Layout.from_grid(torch.tensor([4]), None, begins, CPU)


@settings(max_examples=80, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 25)), min_size=1, max_size=4),
    chunk=st.integers(1, 9),
)
def test_rounds_cover_every_token_once_and_close_full_chunks(
    rows: list[tuple[int, int]], chunk: int
) -> None:
    start, lengths = (torch.tensor(x) for x in zip(*rows, strict=True))
    layout = Layout.ragged(start, lengths, CPU)
    done = torch.zeros_like(lengths)
    for step in layout.rounds(chunk):
        assert torch.equal(step.first, done)
        open_before = (start + done) % chunk
        active = step.count > 0
        assert bool((open_before + step.count <= chunk).all())
        assert torch.equal(step.closes, active & (open_before + step.count == chunk))
        assert torch.equal(step.opens, active & (open_before == 0))
        done = done + step.count
    assert torch.equal(done, lengths)
