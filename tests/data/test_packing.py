"""Every sample stands in exactly one row, and no row is too long."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from allmem.data.packing import pack


@given(st.lists(st.integers(1, 100), max_size=80))
def test_packing_keeps_every_sample_once_within_the_limit(lengths: list[int]) -> None:
    rows = pack(lengths, 100)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 100 for row in rows)
    # No two rows could have been one (best fit guarantees it for all but full rows).
    totals = sorted(sum(lengths[i] for i in row) for row in rows)
    assert len(totals) < 2 or totals[0] + totals[1] > 100


def test_packing_fills_rows_well() -> None:
    lengths = [70, 30, 60, 40, 50, 50, 90, 10]
    assert len(pack(lengths, 100)) == 4


def test_without_packing_every_sample_has_its_row() -> None:
    assert pack([5, 6, 7], 100, together=False) == [[0], [1], [2]]


def test_a_sample_longer_than_a_row_is_a_defect() -> None:
    with pytest.raises(ValueError, match="more than a row"):
        pack([101], 100)
