"""An arena of language models: facts and prose that are held out, and a task of the evaluation."""

from __future__ import annotations

import json
from typing import Any

import pytest

from allmem.arena import Arena, ArenaConfig
from tests.cli.conftest import make_base, make_tokenizer


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("language")
    tokenizer = make_tokenizer()
    make_base(len(tokenizer)).save_pretrained(root / "teacher")
    tokenizer.save_pretrained(root / "teacher")
    prose = root / "prose.txt"
    prose.write_text("The maid wore an iron ring. " * 60, encoding="utf-8")
    values: dict[str, Any] = {
        "teacher": str(root / "teacher"),
        "output": str(root / "run"),
        "device": "cpu",
        "sizes": {"window": 16, "sinks": 2, "chunk": 8},
        "data": {
            "facts": {"counts": [3], "gaps": [20], "prose": str(prose), "learn_prose": True},
            "evaluated": 2,
        },
        "training": {"steps": 1, "stage": "kl"},
        "entrants": {
            "allmem": {"options": {"head_dim": 8, "width": 8}},
            "wide": {"mixer": "window"},
        },
        "seeds": [0],
        "evaluation": {
            "tasks": ["probes/fact_lists"],
            "limit": 1,
            "lengths": [64],
            "grid": ["8/2/8"],
            "length": 64,
        },
    }
    Arena(ArenaConfig.from_dict(values)).hold()
    found = json.loads((root / "run" / "report.json").read_text())
    return {name: one["figures"] for name, one in found["entrants"].items()}


def test_everybody_is_asked_the_same_beyond_the_window(report: dict[str, Any]) -> None:
    names = {
        "digits of held-out facts",
        "KL on held-out facts",
        "KL on held-out prose",
        "probes/fact_lists: digits",
    }
    for entrant, figures in report.items():
        assert names <= set(figures), entrant
        sizes = {name: figures[name]["mean"]["n"] for name in names}
        assert sizes == {name: report["teacher"][name]["mean"]["n"] for name in names}


def test_the_teacher_has_no_kl_and_the_window_has(report: dict[str, Any]) -> None:
    name = "KL on held-out prose"
    assert report["teacher"][name]["mean"]["mean"] == pytest.approx(0, abs=1e-5)
    assert report["window alone"][name]["mean"]["mean"] > 1e-3


def test_the_grid_is_read_by_those_that_have_the_arena_s_window(report: dict[str, Any]) -> None:
    name = "probes/fact_lists: digits at 8/2/8"
    assert name in report["allmem"]
    assert name not in report["wide"]
