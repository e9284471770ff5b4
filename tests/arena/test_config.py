"""What an arena's file may say, and what it is told otherwise."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from allmem import AllMemError
from allmem.arena import ArenaConfig, load_arena
from tests.arena.tiny import make_config

ROOT = Path(__file__).parents[2]
TRAINING = {"steps": 3, "stage": "kl"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"entrant": {}}, "did you mean 'entrants'"),
        (
            {"entrants": {"allmem": {"option": {}}}},
            "allmem: unknown key 'option'; did you mean 'op",
        ),
        ({"entrants": {"allmem": {"options": 3}}}, "options = 3 must be keys and values"),
        ({"entrants": {}}, "nobody takes part"),
        ({"entrants": {"x": {"mixer": "kda", "ablation": "muon"}}}, "goes without a mixer"),
        ({"include": ["everything"]}, "include"),
        ({"recall": None}, "give one of recall and data"),
        ({"data": {"facts": {}}}, "give one of recall and data"),
        (
            {"recall": None, "data": {"on_policy": {"prompts": ["a"]}}},
            "makes other rows for every entrant",
        ),
        ({"seeds": []}, "seeds = []"),
        ({"seeds": [1, 1]}, "all different"),
        ({"training": {"minutes": 3, "stage": "kl"}}, "fewer tokens than fast ones"),
        ({"training": {"steps": 3}}, "only the paper's memory has"),
        ({"training": {**TRAINING, "calibrate_steps": 2}}, "special_stages: true"),
        ({"training": {**TRAINING, "random": {"windows": [32]}}}, "evaluation.grid"),
        ({"sizes": {"window": 16, "chunk": 32}}, "choose chunk <= 16"),
        ({"sizes": {"window": 0}}, "window = 0"),
        ({"limits": {"state": -1}}, "state = -1"),
        ({"evaluation": {"sequences": 0}}, "sequences = 0"),
        ({"evaluation": {"tasks": ["probes"]}}, "recall has no words"),
        ({"unmatched": ["bytes"]}, "unmatched"),
        ({"evaluation": {"grid": ["16"]}}, "window/sinks/chunk"),
        ({"evaluation": {"grid": ["16/0/32"]}}, "choose chunk <= 16"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(AllMemError) as error:
        make_config(tmp_path, **change)
    assert said in str(error.value)


def test_special_stages_can_be_allowed(tmp_path: Path) -> None:
    config = make_config(tmp_path, training={"steps": 3}, special_stages=True)
    assert config.training.stage == "all"


def test_it_goes_through_json_and_back(tmp_path: Path) -> None:
    config = make_config(tmp_path, entrants={"allmem": None, "b": {"mixer": "kda"}})
    again = ArenaConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config


def test_settings_take_the_place_of_the_file_s(tmp_path: Path) -> None:
    file = tmp_path / "arena.yaml"
    file.write_text(json.dumps(make_config(tmp_path).to_dict()))
    config = load_arena(file, ["training.steps=7", "seeds=[4]"])
    assert config.training.steps == 7
    assert config.seeds == (4,)
    with pytest.raises(AllMemError, match=r"there is no file .*other\.yaml"):
        load_arena(tmp_path / "other.yaml")


@pytest.mark.parametrize("name", ["arena_recall.yaml", "arena_smollm2.yaml"])
def test_the_ready_files_are_arenas(name: str) -> None:
    config = load_arena(ROOT / "examples" / name)
    assert len(config.seeds) >= 3
    assert not config.special_stages


def test_the_arena_of_the_documentation_is_one() -> None:
    page = (ROOT / "docs" / "arena.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    config = ArenaConfig.from_dict(yaml.safe_load(block.replace("3e-3", "0.003")), "docs/arena.md")
    assert config.reference in config.entrants
    described = set(re.findall(r"`(\w+)`", page))
    assert {field.name for field in dataclasses.fields(ArenaConfig)} <= described
