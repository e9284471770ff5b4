"""Exponents of growth."""

from __future__ import annotations

import math

import pytest

from benchmarks.doubling import TINY, expected, exponent, study


@pytest.mark.parametrize("power", [-1.0, 0.0, 0.5, 1.0, 2.0])
def test_a_power_has_its_exponent(power: float) -> None:
    sizes = [2, 4, 8, 16]
    assert exponent(sizes, [3 * size**power for size in sizes]) == pytest.approx(power, abs=1e-12)


def test_noise_moves_an_exponent_little() -> None:
    sizes = [1, 2, 4, 8]
    noisy = [size * factor for size, factor in zip(sizes, (1.02, 0.98, 1.01, 0.99), strict=True)]
    assert exponent(sizes, noisy) == pytest.approx(1, abs=0.02)


def test_a_fixed_part_lowers_the_exponent_but_less_in_the_last_doubling() -> None:
    sizes = [1, 2, 4, 8, 16]
    values = [10 + size for size in sizes]
    assert 0 < exponent(sizes, values) < exponent(sizes[-2:], values[-2:]) < 1


def test_no_slope_without_two_sizes_and_none_of_zeros() -> None:
    with pytest.raises(ValueError, match="no slope"):
        exponent([4, 4], [1, 2])
    with pytest.raises(ValueError, match="no slope"):
        exponent([2, 4], [1, 2, 3])
    assert math.isnan(exponent([1, 2], [0, 1]))


def test_closed_forms_say_what_stays_and_what_doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    assert expected("prefill", TINY)["seconds"] > 0
    monkeypatch.setattr("benchmarks.doubling.in_process", lambda work, sizes, *_: {
        "seconds": float(sizes.T), "bytes": 1e6,
    })  # fmt: skip
    row = study("prefill", "T", (2048, 4096), TINY, "cpu", 1)
    assert (row["seconds: exponent"], row["bytes: exponent"]) == ("1.00", "0.00")
    # Far beyond the window reading is linear, and its state stays.
    assert float(row["seconds: closed form"]) == pytest.approx(1, abs=0.02)
    assert row["bytes: closed form"] == "0.00"
    assert row["seconds"] == "2.05e+03, 4.1e+03"
