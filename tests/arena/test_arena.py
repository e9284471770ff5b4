"""A whole arena: what it leaves, that it goes on where it was, what it says of those who fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from allmem import AllMemError
from allmem.arena import Arena
from allmem.arena.schedule import JobProgress, _share
from allmem.arena.standings import gather
from allmem.arena.wording import about_arena
from allmem.machine import made_with
from allmem.mixers import registry
from tests.arena.tiny import REFERENCE, STEPS, make_arena, make_config

ROOT = Path(__file__).parents[2]
GRID = {"sequences": 8, "grid": ["16/0/16"]}


def numbers(arena: Arena) -> dict[str, Any]:
    """Of the report, but for what a clock decides and where it lies."""
    report = json.loads((Path(arena.config.output) / "report.json").read_text())
    del report["arena"]["output"]
    for entrant in report["entrants"].values():
        del entrant["training_pace"], entrant["reading_pace"]
    return report


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Arena:
    arena = make_arena(tmp_path_factory.mktemp("whole"), evaluation=GRID)
    arena.hold()
    return arena


def test_it_reports_everybody(whole: Arena) -> None:
    found = numbers(whole)["entrants"]
    assert set(found) == {"teacher", "window alone", "allmem", "gated_deltanet"}
    right = {name: one["figures"]["right answers"] for name, one in found.items()}
    assert right["teacher"]["mean"]["mean"] > 99
    assert 35 < right["window alone"]["mean"]["mean"] < 50
    assert set(right["allmem"]["seeds"]) == set(right["gated_deltanet"]["seeds"]) == {"0", "1"}
    assert right["gated_deltanet"]["difference"]["n"] == 16
    # The same checkpoint, read with half of the window.
    at = found["window alone"]["figures"]["right answers at 16/0/16"]["mean"]["mean"]
    assert at < right["window alone"]["mean"]["mean"]
    text = (Path(whole.config.output) / "report.md").read_text()
    assert "2 of at least three seeds" in text
    assert "| gated_deltanet |" in text
    assert (Path(whole.config.output) / "report.html").is_file()


def test_it_tells_with_what_it_was_made(whole: Arena) -> None:
    (job,) = [job for job in whole.jobs if job.label == "allmem, seed 1"]
    made = made_with(torch.device("cpu"))

    def told() -> str:
        standings = gather(whole.contenders, whole.jobs)
        return list(about_arena(whole.config, standings, 128))[-1]

    assert told() == f"Made with {made}."
    file = job.folder / "training.json"
    before = file.read_text()
    try:
        file.write_text(before.replace(f"torch {torch.__version__}", "torch 1.0"))
        assert told().startswith("Not all of it was made with the same: ")
        assert made in told()
        assert "torch 1.0" in told()
    finally:
        file.write_text(before)


def test_it_tells_where_routers_sent_tokens(tmp_path: Path) -> None:
    arena = make_arena(
        tmp_path,
        entrants={"allmem": {"options": REFERENCE}, "routed": None},
        seeds=[0],
        unmatched=["parameters", "state"],
    )
    report = arena.hold().report.read_text()
    (routed,) = [one for one in gather(arena.contenders, arena.jobs) if one.router_load]
    loads = routed.router_load[0]
    assert set(loads) == {"0", "1"}
    for shares in loads.values():
        assert len(shares) == 4
        assert sum(shares) == pytest.approx(1)
        # Every token goes to two parts, and to no part twice.
        assert max(shares) <= 0.5
    shares = " ".join(f"{share:.0%}" for share in loads["1"])
    assert f"| routed | 0 | 1 | {shares} |" in report


def test_what_is_done_is_not_done_again(whole: Arena) -> None:
    told: list[JobProgress] = []
    whole.hold(on_progress=told.append)
    assert told == []


def test_entrants_are_trained_on_the_same_rows(whole: Arena) -> None:
    trained = {job.label: job.trained() for job in whole.jobs if job.seed is not None}
    assert len({t["tokens"] for t in trained.values() if t}) == 1
    assert len({t["rows"] for t in trained.values() if t}) == 2
    (job,) = [job for job in whole.jobs if job.label == "gated_deltanet, seed 1"]
    file = job.folder / "training.json"
    before = file.read_text()
    try:
        file.write_text(before.replace("RecallTask(", "AnotherTask("))
        with pytest.raises(AllMemError, match="the rows of seed 1 were"):
            whole.report()
    finally:
        file.write_text(before)


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("stop", [2, 2 * STEPS + 3])
def test_an_arena_that_was_stopped_ends_with_the_same_report(
    stop: int, whole: Arena, tmp_path: Path
) -> None:
    """In the middle of a training, and in the second seed."""
    arena = make_arena(tmp_path, evaluation=GRID)
    steps = 0

    def note(now: JobProgress) -> None:
        nonlocal steps
        steps += now.step is not None
        if steps == stop:
            raise StoppedError

    with pytest.raises(StoppedError):
        arena.hold(on_progress=note)
    arena.hold()
    assert numbers(arena) == numbers(whole)


@pytest.mark.timeout(300)
def test_an_arena_that_was_killed_ends_with_the_same_report(whole: Arena, tmp_path: Path) -> None:
    config = make_config(tmp_path, evaluation=GRID)
    file = tmp_path / "arena.yaml"
    file.write_text(json.dumps(config.to_dict()))
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    process = subprocess.Popen(
        [sys.executable, "-m", "allmem", "arena", str(file)], cwd=ROOT, env=environment
    )
    begun = tmp_path / "jobs" / "allmem" / "seed-0" / "training" / "1-kl"
    while not list(begun.glob("checkpoint-*")):
        assert process.poll() is None, "the arena ended too early"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    arena = Arena(config)
    arena.hold()
    assert numbers(arena) == numbers(whole)


def test_other_settings_in_the_same_folder_are_refused(whole: Arena) -> None:
    output = whole.config.output
    training = {"steps": STEPS + 1, "batch": 1, "stage": "kl", "kl_lr": 3e-3, "positions": "all"}
    with pytest.raises(AllMemError, match=r"training\.steps = 3, now it is 4"):
        make_arena(output, training=training).hold()


def test_other_questions_are_asked_without_training_again(whole: Arena) -> None:
    told: list[JobProgress] = []
    arena = make_arena(whole.config.output, evaluation={"sequences": 4})
    arena.hold(on_progress=told.append)
    try:
        assert told
        assert all(now.step is None for now in told)
        found = numbers(arena)["entrants"]["allmem"]["figures"]["right answers"]
        assert found["mean"]["n"] == 8
    finally:
        whole.hold()


def test_seeds_and_entrants_can_be_added(tmp_path: Path) -> None:
    only = {"allmem": {"options": REFERENCE}}
    make_arena(tmp_path, entrants=only, seeds=[0]).hold()
    told: list[JobProgress] = []
    make_arena(tmp_path, entrants=only, seeds=[0, 1]).hold(on_progress=told.append)
    assert {now.label for now in told} == {"allmem, seed 1"}


def test_an_entrant_that_diverges_is_reported_as_such(tmp_path: Path) -> None:
    wild = {"norm": "none", "clip": None, "step": 500.0, "step_ratio": 1.0}
    arena = make_arena(
        tmp_path,
        entrants={
            "allmem": {"options": REFERENCE},
            "wild": {"mixer": "allmem", "options": {**REFERENCE, **wild}},
        },
        seeds=[0],
    )
    arena.hold()
    found = numbers(arena)["entrants"]["wild"]
    assert "training stopped" in found["diverged"]["0"]
    assert found["figures"] == {}
    text = (tmp_path / "report.md").read_text()
    assert "wild diverged with seed 0" in text
    assert "| wild | diverged" in text
    # It is a result: nothing is tried again.
    told: list[JobProgress] = []
    arena.hold(on_progress=told.append)
    assert told == []


def test_what_does_not_match_is_told_in_the_table(tmp_path: Path) -> None:
    arena = make_arena(
        tmp_path,
        entrants={
            "allmem": {"options": REFERENCE},
            "small": {"mixer": "deltanet", "options": {"key_dim": 4, "value_dim": 4}},
        },
        unmatched=["parameters", "state"],
        seeds=[0],
    )
    arena.hold()
    text = (tmp_path / "report.md").read_text()
    assert "unmatched: " in text
    assert "small is not matched in" in text


def test_a_memory_without_a_special_stage_trains_as_long(tmp_path: Path) -> None:
    training = {"steps": 2, "batch": 1, "kl_lr": 3e-3, "positions": "all", "stage": "kl"}
    arena = make_arena(
        tmp_path,
        entrants={
            "allmem": {"options": {"head_dim": 32, "width": 16}},
            "gated_deltanet": None,
        },
        training={**training, "calibrate_steps": 2},
        special_stages=True,
        seeds=[0],
    )
    arena.hold()
    found = {job.name: job.trained() for job in arena.jobs if job.seed is not None}
    assert found["allmem"]["stages"] == ["calibrate", "kl"]
    assert found["gated_deltanet"]["stages"] == ["kl"]
    assert found["allmem"]["tokens"] == found["gated_deltanet"]["tokens"] == 4 * 128


def test_a_module_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(AllMemError, match="modules: cannot import 'no_such'"):
        make_arena(tmp_path, modules=["no_such"])


def test_a_mixer_of_one_s_own_that_looks_ahead_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "peeking.py").write_text(
        """
from allmem.mixers.gla import GlaMixer, GlaOptions
from allmem.mixers.registry import MemoryKind, register_memory

class Peeking(GlaMixer):
    def rule(self, heads, matrix):
        read, matrix = super().rule(heads, matrix)
        return read.roll(-1, 2), matrix

register_memory(MemoryKind("peeking", GlaOptions, Peeking))
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    # What is registered here is forgotten afterwards.
    monkeypatch.setattr(registry, "_KINDS", dict(registry._KINDS))
    entrants = {"allmem": {"options": REFERENCE}, "peeking": None}
    with pytest.raises(AllMemError, match=r"'peeking' does not keep the contract.*tokens"):
        make_arena(tmp_path / "out", modules=["peeking"], entrants=entrants)


def test_nothing_to_report_is_said(tmp_path: Path) -> None:
    with pytest.raises(AllMemError, match="has no result yet"):
        make_arena(tmp_path).report()


def test_jobs_side_by_side_share_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert [_share(place, 4)["OMP_NUM_THREADS"] for place in range(4)] == ["2"] * 4
    assert _share(0, 16)["OMP_NUM_THREADS"] == "1"


def test_jobs_side_by_side_take_the_visible_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [_share(place, 3)["CUDA_VISIBLE_DEVICES"] for place in range(3)] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert [_share(place, 2)["CUDA_VISIBLE_DEVICES"] for place in range(2)] == ["3", "5"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_side_by_side_gives_the_same_report(whole: Arena, tmp_path: Path) -> None:
    arena = make_arena(tmp_path, evaluation=GRID)
    arena.hold(at_once=2)
    assert numbers(arena) == numbers(whole)


@pytest.mark.parametrize("at_once", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.timeout(600)
def test_a_job_that_fails_is_named_when_the_others_are_done(tmp_path: Path, at_once: int) -> None:
    arena = make_arena(tmp_path, seeds=[0])
    (job,) = [job for job in arena.jobs if job.label == "allmem, seed 0"]
    (job.folder / "training").mkdir(parents=True)
    (job.folder / "training" / "run.json").write_text("{}")
    with pytest.raises(AllMemError, match=r"1 of 4 jobs failed.*allmem, seed 0"):
        arena.hold(at_once=at_once)
    assert [other.label for other in arena.jobs if not other.done] == [job.label]
