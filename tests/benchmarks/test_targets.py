"""Verdicts, and the one table of targets."""

from __future__ import annotations

import math

import pytest

from benchmarks.targets import TARGETS, Finding, target_rows, unmeasured, verdict


@pytest.mark.parametrize(
    ("target", "measured", "expected"),
    [
        ("loop forward", 0.6, "met"),
        ("loop forward", 0.599, "missed"),
        ("decode growth", 1.05, "met"),
        ("decode growth", 1.051, "missed"),
        ("titans", math.nan, "missed"),
        ("startup", math.nan, "missed"),
        ("million", None, "not measured"),
    ],
)
def test_a_target_is_met_on_its_side_of_the_bound(
    target: str, measured: float | None, expected: str
) -> None:
    assert verdict(Finding(target, "", measured)) == expected


def test_rows_stand_in_the_order_of_the_targets_with_every_case() -> None:
    findings = [
        Finding("startup", "--help", 0.25),
        Finding("loop forward", "b", 0.7, "two runs"),
        unmeasured("loop forward", "not installed", "a"),
    ]
    rows = target_rows(findings, ["titans", "startup"])
    assert [row["case"] for row in rows] == ["b", "a", "", "--help"]
    assert [row["verdict"] for row in rows] == ["met", "not measured", "not measured", "met"]
    assert rows[0]["measured"] == "70 %"
    assert rows[0]["target"] == "≥ 60 %"
    assert rows[1]["remark"] == "not installed"
    assert rows[2]["what"] == TARGETS["titans"].what
    assert rows[3]["target"] == "≤ 0.5 s"


def test_what_nobody_wants_and_nobody_found_is_not_shown() -> None:
    assert target_rows([]) == []
