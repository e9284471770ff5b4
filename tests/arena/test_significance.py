"""The t distribution against the tables, and Holm's correction against its definition."""

from __future__ import annotations

import pytest

from allmem.arena.significance import holm, t_quantile, t_within

# Two-sided 95 % and 99 % points, from the tables of the t distribution.
TABLE = {
    1: (12.706205, 63.656741),
    2: (4.302653, 9.924843),
    3: (3.182446, 5.840909),
    4: (2.776445, 4.604095),
    9: (2.262157, 3.249836),
    10: (2.228139, 3.169273),
    30: (2.042272, 2.749996),
    120: (1.979930, 2.617421),
}


@pytest.mark.parametrize("freedom", TABLE)
def test_quantiles_are_those_of_the_tables(freedom: int) -> None:
    for level, expected in zip((0.95, 0.99), TABLE[freedom], strict=True):
        assert t_quantile(level, freedom) == pytest.approx(expected, abs=2e-6)
        assert t_within(expected, freedom) == pytest.approx(level, abs=1e-7)


def test_nothing_lies_within_zero() -> None:
    assert t_within(0.0, 1) == t_within(0.0, 2) == 0


def test_holm_multiplies_step_by_step() -> None:
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    # As in R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm").
    assert found == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert holm({"a": 0.7, "b": 0.8}) == {"a": 1, "b": 1}
    assert holm({}) == {}
