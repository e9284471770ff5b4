"""What a user may choose: ranges, budgets, drawn sizes."""

from __future__ import annotations

from typing import Any

import pytest

from allmem.distill.config import DistillConfig, Objective, Span
from allmem.distill.sizes import RandomSizes
from allmem.errors import AllMemError


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, "tokens = None, steps = None, minutes = None: give one"),
        ({"steps": 3, "tokens": 5}, "give one of the three"),
        ({"steps": 0}, "steps = 0 must be positive"),
        ({"steps": 1, "stage": "solv"}, "'solv'.*solve"),
        ({"steps": 1, "state_init": "pass"}, "passed"),
        ({"steps": 1, "decay": 1.5}, "decay = 1.5 must lie between 0 and 1"),
        ({"steps": 1, "truncate": True}, "needs segment"),
        ({"steps": 1, "segment": 0}, "segment = 0 must be positive"),
        ({"steps": 1, "fsdp": True, "deepspeed": "x.json"}, "choose one"),
        ({"steps": 1, "fsdp": True, "segment": 8}, "does not go with segment"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(AllMemError, match=named):
        DistillConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"divergence": "kl"}, "forward_kl"),
        ({"jsd_beta": 1.0}, "jsd_beta = 1.0"),
        ({"ce_weight": -1.0}, "ce_weight = -1.0"),
        ({"kl_weight": 0.0}, "nothing"),
        ({"temperature": 0.0}, "temperature = 0.0"),
    ],
)
def test_objectives_are_checked(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(AllMemError, match=named):
        Objective(**changes)


def test_a_budget_is_spread_over_the_stages() -> None:
    def spans(stage: str, solvable: bool = True, **more: Any) -> list[Span]:
        return DistillConfig(steps=100, stage=stage, **more).spans(100, solvable)  # type: ignore[arg-type]

    assert spans("kl") == [Span("kl", 100)]
    assert spans("all") == [Span("solve", 30), Span("kl", 70)]
    assert spans("all", solvable=False) == [Span("match", 60), Span("kl", 40)]
    assert spans("both") == [Span("match", 60), Span("kl", 40)]
    assert spans("all", match_share=0.5) == [Span("solve", 30), Span("match", 35), Span("kl", 35)]


def test_rates_of_the_stages() -> None:
    assert DistillConfig(steps=1, lr=1e-3).rates("match") == (1e-3, 1e-2)
    assert DistillConfig(steps=1, lr=1e-3).rates("kl") == pytest.approx((2e-4, 2e-3))
    config = DistillConfig(steps=1, lr=1e-3, kl_lr=5e-4, alpha_ratio=4)
    assert config.rates("kl") == pytest.approx((5e-4, 2e-3))


def test_drawn_sizes_fit_together_and_follow_the_seed() -> None:
    random = RandomSizes(windows=(32, 64, 256))
    drawn = [random.draw(step, seed=1) for step in range(300)]
    assert drawn == [random.draw(step, seed=1) for step in range(300)]
    assert drawn != [random.draw(step, seed=2) for step in range(300)]
    assert {sizes.window for sizes in drawn} == {32, 64, 256}
    assert {sizes.chunk for sizes in drawn if sizes.window == 64} == {8, 16, 32, 64}
    assert {sizes.sinks for sizes in drawn if sizes.window == 256} == {4, 8, 16, 32, 64}
    for sizes in drawn:
        assert sizes.sinks <= sizes.window // 4
        assert sizes.chunk is not None
        assert sizes.window // 8 <= sizes.chunk <= sizes.window


def test_named_sizes_are_cut_to_what_the_window_allows() -> None:
    random = RandomSizes(windows=(16, 64), sinks=(0, 4, 16), chunks=(8, 32))
    drawn = [random.draw(step, seed=0) for step in range(100)]
    assert {(s.window, s.sinks) for s in drawn} == {(16, 0), (16, 4), (64, 0), (64, 4), (64, 16)}
    assert {(s.window, s.chunk) for s in drawn} == {(16, 8), (64, 8), (64, 32)}
    with pytest.raises(AllMemError, match=r"chunks = \(32,\) holds nothing up to the window 16"):
        RandomSizes(windows=(16, 64), chunks=(32,))


def test_the_essence_leaves_out_how_a_run_is_kept_and_spread() -> None:
    one = DistillConfig(steps=1, batch=4, workers=1, report_to=("tensorboard",)).essence()
    other = DistillConfig(steps=1, accumulate=4, checkpoint_steps=3).essence()
    assert one == other != DistillConfig(steps=1, seed=1).essence()
