"""What is made of the seconds that readers took."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.reading import ALLMEM, FULL, Reader, judge, read
from benchmarks.targets import Finding


def reader(name: str, seconds: dict[int, list[float]], **more: Any) -> Reader:
    return Reader(name, None, lambda: None, name != FULL, seconds, **more)  # type: ignore[arg-type]


def found(findings: list[Finding]) -> dict[str, float | None]:
    return {finding.target: finding.measured for finding in findings}


def test_ratios_are_of_medians() -> None:
    full = reader(FULL, {4096: [8.0, 9.0, 10.0], 32768: [300.0]})
    ours = reader(
        ALLMEM,
        {4096: [6.0], 8192: [10.0, 11.0, 12.0], 32768: [60.0, 90.0], 65536: [88.0]},
        decoding={1024: [0.1, 0.2, 0.1], 131072: [0.11, 0.22, 0.11]},
    )
    said = found(judge([full, ours]))
    assert said["prefill 4k"] == pytest.approx(1.5)
    assert said["prefill 32k"] == pytest.approx(4.0)
    assert said["prefill growth"] == pytest.approx(1.0)
    assert said["decode growth"] == pytest.approx(1.1)


def test_what_was_not_read_is_not_measured() -> None:
    said = found(judge([reader(FULL, {}), reader(ALLMEM, {})]))
    assert set(said.values()) == {None}


def test_a_reader_that_continues_notes_the_time_at_every_length() -> None:
    calls: list[int] = []

    def model(input_ids: torch.Tensor, **_: Any) -> None:
        calls.append(input_ids.shape[1])

    ids = torch.zeros(1, 5000, dtype=torch.int64)
    ours = Reader(ALLMEM, model, lambda: None, True)  # type: ignore[arg-type]
    read(ours, ids, [3000, 5000], keep=False)
    assert calls == [2048, 952, 2000]
    assert list(ours.seconds) == [3000, 5000]
    assert ours.seconds[3000] < ours.seconds[5000]
    calls.clear()
    full = Reader(FULL, model, lambda: None, False)  # type: ignore[arg-type]
    read(full, ids, [5000], keep=False)
    assert calls == [5000]
