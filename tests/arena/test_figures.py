"""Means over questions and seeds, their intervals, and paired differences."""

from __future__ import annotations

import math
import statistics

import pytest
import torch

from allmem.arena.figures import Figure, difference, mean, probability, single
from allmem.evaluation.bootstrap import Scored, mean_score
from allmem.evaluation.task import Part


def made(seed: int, questions: int = 200, shift: float = 0.0) -> Figure:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randint(1, 6, (questions,), generator=generator).double()
    shares = (torch.rand(questions, generator=generator) + shift).clamp(0, 1).double()
    return Figure("right", (weights * shares).tolist(), weights.tolist())


def raised(figure: Figure, by: float) -> Figure:
    """Every question better by as much."""
    sums = [s + by * w for s, w in zip(figure.sums, figure.weights, strict=True)]
    return Figure(figure.name, sums, figure.weights)


def test_one_seed_has_the_interval_of_its_questions() -> None:
    figure = made(0)
    rows = [
        Scored(str(i), str(i), [Part({"right": s / w}, weight=w)])
        for i, (s, w) in enumerate(zip(figure.sums, figure.weights, strict=True))
    ]
    expected, found = mean_score(rows, "right", 100.0), mean([figure])
    assert found.mean == pytest.approx(expected.mean) == pytest.approx(single(figure))
    # Other draws of the same distribution.
    assert found.low == pytest.approx(expected.low, abs=0.6)
    assert found.high == pytest.approx(expected.high, abs=0.6)


def test_seeds_have_the_t_interval_of_their_means() -> None:
    seeds = [made(0, shift=shift) for shift in (-0.3, 0.0, 0.3)]
    values = [single(figure) for figure in seeds]
    found = mean(seeds)
    half = 4.302653 * statistics.stdev(values) / math.sqrt(3)
    assert found.mean == pytest.approx(statistics.fmean(values))
    assert found.low == pytest.approx(found.mean - half)
    assert found.high == pytest.approx(found.mean + half)
    assert found.n == 600


def test_differences_are_paired_by_seed() -> None:
    base = [made(0, shift=shift) for shift in (-0.3, 0.0, 0.3)]
    better = [raised(f, by) for f, by in zip(base, (0.10, 0.11, 0.12), strict=True)]
    found = difference(better, base)
    # 10, 11 and 12 points: sd 1, however far the seeds lie apart.
    assert found.mean == pytest.approx(11)
    assert found.high - found.mean == pytest.approx(4.302653 / math.sqrt(3))
    # t = 11 sqrt(3) with two degrees: p = 1 - t / sqrt(2 + t²).
    t = 11 * math.sqrt(3)
    assert probability(better, base) == pytest.approx(1 - t / math.sqrt(2 + t * t))
    same = difference(base, base)
    assert (same.mean, same.low, same.high) == (0, 0, 0)


def test_seeds_without_a_spread_cannot_be_tested() -> None:
    base = [made(seed) for seed in range(3)]
    assert probability([raised(figure, 0.1) for figure in base], base) == 1


def test_a_difference_of_one_seed_is_paired_by_question() -> None:
    found = difference([raised(made(0), 0.1)], [made(0)])
    assert (found.mean, found.low, found.high) == pytest.approx((10, 10, 10))
    assert found.n == 200


def test_one_without_a_seed_is_compared_with_all_seeds() -> None:
    base = [made(seed) for seed in range(3)]
    found = difference([made(7)], base)
    assert found.n == 600
    assert found.mean == pytest.approx(single(made(7)) - mean(base).mean)


def test_the_same_figures_give_the_same_digits() -> None:
    figures = [made(seed) for seed in range(3)]
    assert mean(figures) == mean(figures)


def test_nothing_has_no_mean() -> None:
    assert math.isnan(mean([]).mean)
    assert difference([], [made(0)]).n == 0
    assert not Figure("kl", [math.nan], [1.0]).finite
