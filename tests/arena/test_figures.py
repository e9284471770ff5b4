"""Means over questions and seeds, their intervals, and paired differences."""

from __future__ import annotations

import math

import pytest
import torch

from allmem.arena.figures import Figure, difference, mean, single
from allmem.evaluation.bootstrap import Scored, mean_score
from allmem.evaluation.task import Part


def made(seed: int, questions: int = 200, shift: float = 0.0) -> Figure:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randint(1, 6, (questions,), generator=generator).double()
    shares = (torch.rand(questions, generator=generator) + shift).clamp(0, 1).double()
    return Figure("right", (weights * shares).tolist(), weights.tolist())


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


def test_seeds_that_differ_widen_the_interval() -> None:
    alike = mean([made(0), made(0), made(0)])
    apart = mean([made(0, shift=-0.3), made(0), made(0, shift=0.3)])
    assert apart.high - apart.low > 2 * (alike.high - alike.low)
    assert alike.n == 600


def test_differences_are_paired_by_question_and_seed() -> None:
    base = [made(seed) for seed in range(3)]
    # Every question of every seed better by a tenth: no doubt is left, however they vary.
    better = [
        Figure("right", [s + 0.1 * w for s, w in zip(f.sums, f.weights, strict=True)], f.weights)
        for f in base
    ]
    found = difference(better, base)
    assert found.mean == pytest.approx(10)
    assert found.low == pytest.approx(10)
    assert found.high == pytest.approx(10)
    same = difference(base, base)
    assert (same.mean, same.low, same.high) == (0, 0, 0)


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
