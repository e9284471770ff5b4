"""Means, intervals, averages and differences, from rows alone."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import pytest

from allmem.evaluation.bootstrap import (
    Score,
    Scored,
    group_average,
    mean_score,
    paired_difference,
)
from allmem.evaluation.scores import Lengths, TaskScores, cells_of, question_of, why_apart
from allmem.evaluation.task import Part
from tests.evaluation.tasks import scored


def coins(number: int, share: float, seed: int) -> list[float]:
    source = random.Random(seed)
    return [float(source.random() < share) for _ in range(number)]


def test_the_same_rows_give_the_same_figures() -> None:
    rows = scored(coins(80, 0.3, 1))
    assert mean_score(rows, "right", 100) == mean_score(rows, "right", 100)


def test_the_interval_is_that_of_the_normal_approximation() -> None:
    values = coins(400, 0.3, 2)
    found = mean_score(scored(values), "right", 100)
    share = sum(values) / 400
    wide = 1.96 * 100 * math.sqrt(share * (1 - share) / 400)
    assert found.mean == pytest.approx(100 * share)
    assert found.n == 400
    assert found.low == pytest.approx(found.mean - wide, abs=wide / 5)
    assert found.high == pytest.approx(found.mean + wide, abs=wide / 5)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    held = 0
    for seed in range(200):
        found = mean_score(scored(coins(60, 0.4, seed)), "right")
        held += found.low <= 0.4 <= found.high
    # 95 % of 200 and three standard deviations, and a little for small samples.
    assert 0.88 * 200 <= held <= 199


def test_nothing_has_no_mean_and_one_row_no_width() -> None:
    nothing = mean_score([], "right")
    assert math.isnan(nothing.mean)
    assert nothing.n == 0
    assert mean_score(scored([1.0]), "right") == Score(1.0, 1.0, 1.0, 1)
    assert mean_score(scored([1.0]), "wrong").n == 0


def test_parts_count_by_their_weights() -> None:
    rows = [
        Scored("a", "a", [Part({"loss": 1.0}, {"k": 1}, 3), Part({"loss": 5.0}, {"k": 2}, 1)]),
        Scored("b", "b", [Part({"loss": 2.0}, {"k": 2}, 4)]),
    ]
    assert mean_score(rows, "loss").mean == pytest.approx((3 + 5 + 8) / 8)
    assert mean_score(rows, "loss", where={"k": 2}) == pytest.approx(
        mean_score(
            [Scored("a", "a", rows[0].parts[1:]), rows[1]],
            "loss",
        )
    )
    assert mean_score(rows, "loss", where={"k": 1}).n == 1


def test_several_answers_to_one_question_are_resampled_together() -> None:
    values = coins(50, 0.5, 3)
    apart = [Scored(f"{i}", f"{i}", [Part({"right": v})]) for i, v in enumerate(values * 10)]
    together = [
        Scored(f"{i}#{k}", f"{i}", [Part({"right": v})])
        for k in range(10)
        for i, v in enumerate(values)
    ]
    once = mean_score(scored(values), "right")
    narrow, honest = mean_score(apart, "right"), mean_score(together, "right")
    assert honest.mean == narrow.mean == once.mean
    assert honest.n == 500
    assert (honest.low, honest.high) == pytest.approx((once.low, once.high))
    assert narrow.high - narrow.low < 0.5 * (honest.high - honest.low)
    assert question_of({"id": "q#3", "sample": 3}) == "q"
    assert question_of({"id": "q#3"}) == "q#3"


def test_an_average_weighs_tasks_not_rows() -> None:
    many, few = scored(coins(500, 0.2, 4)), scored([1.0, 1.0, 0.0, 1.0])
    found = group_average([(many, "right", 100), (few, "right", 1)])
    first, second = mean_score(many, "right", 100), mean_score(few, "right", 1)
    assert found.mean == pytest.approx((first.mean + second.mean) / 2)
    assert found.n == 504
    assert found.low < found.mean < found.high
    # Narrower than the sum of both, since what is drawn for one task does not bind the other.
    width = (first.high - first.low + second.high - second.low) / 2
    assert found.high - found.low < width


def test_a_paired_difference_knows_that_rows_belong_together() -> None:
    easy = coins(300, 0.5, 5)
    better = [max(v, float(i % 20 == 0)) for i, v in enumerate(easy)]
    found = paired_difference(scored(better), scored(easy), "right", 100)
    expected = 100 * (sum(better) - sum(easy)) / 300
    assert found.mean == pytest.approx(expected)
    assert found.low > 0
    alone = mean_score(scored(better), "right", 100)
    assert found.high - found.low < 0.5 * (alone.high - alone.low)
    same = paired_difference(scored(easy), scored(easy), "right")
    assert (same.mean, same.low, same.high) == (0, 0, 0)


def test_a_difference_is_of_the_rows_that_both_answered() -> None:
    ours = scored([1.0, 0.0, 1.0, 1.0])
    # In another order, and without the second.
    theirs = [scored([0.0, 9.0, 1.0, 0.0, 0.0])[i] for i in (4, 3, 0, 2)]
    found = paired_difference(ours, theirs, "right")
    assert found.n == 3
    assert found.mean == pytest.approx(1 - 1 / 3)
    assert paired_difference(ours, scored([]), "right").n == 0


def task(rows: list[Scored], name: str = "probes/x", **header: Any) -> TaskScores:
    lengths = Lengths(None, None, None, 0, 0)
    return TaskScores("m", name, "right", 100.0, True, rows, lengths, header=header)


def test_what_attention_sees_itself_counts_only_where_there_is_nothing_else() -> None:
    seen = [
        Scored("a", "a", [Part({"right": 1.0}, {"depth": 1.0, "beyond": "no"})]),
        Scored("b", "b", [Part({"right": 1.0}, {"depth": 1.0, "beyond": "no"})]),
    ]
    hidden = Scored("c", "c", [Part({"right": 0.0}, {"depth": 0.0})])
    assert (task([*seen, hidden]).overall.mean, task([*seen, hidden]).overall.n) == (0, 1)
    assert task([*seen, hidden]).score(where={"depth": 1.0}).mean == 100
    assert (task(seen).overall.mean, task(seen).overall.n) == (100, 2)


def test_rows_that_are_missing_are_counted() -> None:
    assert task(scored([1.0, 0.0]), examples=5).missing == 3
    assert task(scored([1.0, 0.0])).missing == 0


def test_tasks_are_averaged_where_score_and_setting_are_alike() -> None:
    greedy, drawn = {"sampling": {"temperature": 0}}, {"sampling": {"temperature": 1}}
    one, other = task(scored([1.0])), task(scored([0.0]))
    assert why_apart([one, other]) is None
    assert why_apart([one, replace(other, metric="f1")]) is None
    assert why_apart([one, replace(other, higher_is_better=False)]) is not None
    nats = [replace(one, metric=name, scale=1.0) for name in ("nll", "added")]
    assert why_apart(nats) is not None
    assert why_apart([nats[0], nats[0]]) is None
    rows = scored([1.0])
    assert why_apart([task(rows, setting=greedy), task(rows, setting=greedy)]) is None
    apart = why_apart([task(rows, setting=greedy), task(rows, setting=drawn)])
    assert apart is not None
    assert "sampling" in apart


def test_lengths_of_ruler_are_tests_of_their_own() -> None:
    rows = [Scored(str(n), str(n), [Part({"right": 1.0}, {"length": n})]) for n in (4, 8)]
    assert [dict(cell) for cell in task(rows, "ruler/x").lengths_apart] == [
        {"length": 4},
        {"length": 8},
    ]
    assert not task(rows[:1], "ruler/x").lengths_apart
    assert not task(rows).lengths_apart


def test_cells_come_in_order() -> None:
    rows = [
        Scored("a", "a", [Part({"x": 1.0}, {"length": 16384, "depth": 0.5})]),
        Scored("b", "b", [Part({"x": 0.0}, {"length": 4096, "depth": 1.0}), Part({"x": 0.0})]),
        Scored("c", "c", [Part({"x": 0.0}, {"length": 4096, "depth": 0.0})]),
    ]
    assert [dict(cell) for cell in cells_of(rows)] == [
        {"length": 4096, "depth": 0.0},
        {"length": 4096, "depth": 1.0},
        {"length": 16384, "depth": 0.5},
    ]
    assert cells_of(rows, ["length"]) == [(("length", 4096),), (("length", 16384),)]
