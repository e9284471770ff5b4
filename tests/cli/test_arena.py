"""``allmem arena`` and ``allmem place`` as commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.arena.tiny import make_config


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "arena.yaml"
    config = make_config(tmp_path / "run", seeds=[0], evaluation={"sequences": 4})
    path.write_text(json.dumps(config.to_dict()))
    return str(path)


def test_who_takes_part_is_shown_before_anything_is_done(
    run: Any, file: str, tmp_path: Path
) -> None:
    shown = run("arena", file, "--show").stdout
    assert "gated_deltanet" in shown
    assert "4 jobs" in shown
    assert not (tmp_path / "run").exists()


def test_an_arena_is_held_and_reported(run: Any, fails: Any, file: str, tmp_path: Path) -> None:
    assert "no result yet" in fails("arena", file, "--report")
    found = run("arena", file, "training.steps=1").stdout
    assert "window alone" in found
    assert str(tmp_path / "run" / "report.md") in found
    again = run("arena", file, "training.steps=1", "--report").stdout
    # Other libraries may have said something first.
    assert found.endswith(again)
    assert "training.steps = 1, now it is 3" in fails("arena", file)


def test_bad_arenas_are_refused_in_a_line(fails: Any, file: str) -> None:
    assert "there is no file" in fails("arena", "none.yaml")
    assert "did you mean 'seeds'" in fails("arena", file, "sead=[1]")
    assert "did you mean 'gated_deltanet'" in fails(
        "arena", file, 'entrants={allmem: null, "gated_deltanett": null}'
    )


def test_place_proposes_layers(run: Any, base: str, story: str, tmp_path: Path) -> None:
    table = tmp_path / "place.json"
    options = ["--window", "16", "--sinks", "2", "--tokens", "100", "--json", str(table)]
    shown = run("place", base, "--keep", "1", "--text", story, *options).stdout
    found = json.loads(table.read_text())
    (kept,) = found["keep"]
    assert f"--keep-full {kept}" in shown
    assert found["mixers"] in shown
    assert set(found["alone"]) == {"0", "1"}
    assert found["alone"][str(kept)]["kl"] == max(one["kl"] for one in found["alone"].values())
    facts = run("place", base, "--keep", "0", "--facts", *options).stdout
    assert "digits right" in facts


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--keep", "2"], "keep = 2 must lie between 0 and 1"),
        (["--keep", "1", "--mixer", "allmem"], "allmem' stands beside the window"),
        (["--keep", "1", "--mixer", "windw"], "did you mean 'window'"),
        (["--keep", "1", "--facts", "--text", "x"], "name one of them"),
        (["--keep", "1", "--text", "no-such.txt"], "there is no file no-such.txt"),
        (["--keep", "1", "--length", "9"], "does not reach beyond"),
        (["--keep", "1", "--facts", "--length", "99"], "--length 99: rows of facts are as long"),
        (["--keep", "1", "--json", "nowhere/x.json"], "there is no folder nowhere"),
    ],
)
def test_bad_places_are_refused_in_a_line(
    fails: Any, base: str, args: list[str], said: str
) -> None:
    assert said in fails("place", base, "--window", "16", "--sinks", "2", *args)
