"""Recipes: what is read, what is refused, and whole runs from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from allmem.data.fact_lists import FactLists
from allmem.distill.recipe import (
    DataSource,
    Recipe,
    TeacherSource,
    load_recipe,
    preset_names,
    recipe_text,
)
from allmem.errors import AllMemError
from allmem.schema import build_from

GOOD: dict[str, Any] = {
    "model": "base",
    "output": "run",
    "data": {"texts": ["book.txt"]},
    "training": {"steps": 3},
}


def write(folder: Path, values: dict[str, Any]) -> str:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def test_settings_take_the_place_of_the_files_values(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    recipe = load_recipe(
        path,
        [
            "training.lr=1e-3",
            "training.objective.ce_weight=.5",
            "conversion.window=64",
            "conversion.memory.width=32",
            "training.random={windows: [32, 64]}",
            "data.texts=[a.txt, b.txt]",
            "output=elsewhere",
        ],
    )
    assert recipe.training.lr == 1e-3
    assert recipe.training.steps == 3
    assert recipe.training.objective.ce_weight == 0.5
    assert recipe.conversion.window == 64
    assert recipe.conversion.memory == {"width": 32}
    assert recipe.training.random is not None
    assert recipe.training.random.windows == (32, 64)
    assert recipe.data.texts == ("a.txt", "b.txt")
    assert recipe.output == "elsewhere"


def test_a_recipe_written_out_is_the_same_recipe() -> None:
    settings = {"training": {"steps": 3, "random": {"windows": [32]}, "segment": 64}}
    recipe = build_from(Recipe, {**GOOD, **settings}, "x")
    again = build_from(Recipe, yaml.safe_load(recipe_text(recipe)), "y")
    assert again == recipe


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["training.lrr=1"], r"training: unknown key 'lrr'.*lr"),
        (["trainin.lr=1"], r"unknown key 'trainin'.*training"),
        (["training.objective.divergance=jsd"], r"objective: unknown key.*divergence"),
        (["training.lr=fast"], r"training: lr = 'fast' must be a number"),
        (["training.stage=sove"], r"stage = 'sove' must be one of .*; did you mean 'solve'"),
        (["training.steps.a=1"], r"steps is 3, with nothing inside"),
        (["training.lr"], r"'training.lr': expected key=value"),
        (["training.tokens=5"], r"give one of the three"),
        (["data.folder=x"], r"give one of folder, texts, .* mixture and on_policy"),
        (["data.texts=[]"], r"give one of folder, texts, .* mixture and on_policy"),
        (["data={mixture: [{share: 2}]}"], r"mixture, source 1: give one of folder"),
        (["data={mixture: [{facts: {}, share: 0}]}"], r"source 1: share = 0 must be a positive"),
        (["data={mixture: [{facts: {digits: 0}}]}"], r"source 1: facts: digits = 0"),
        (["data={mixture: [{mixture: [{}]}]}"], r"mixture belongs beside the mixture"),
        (["teacher.kind=model"], r"do not go together"),
        (["training.random={windows: []}"], r"windows is empty"),
        (["conversion.window=8", "conversion.chunk=16"], r"chunk"),
    ],
)
def test_what_is_wrong_is_named(settings: list[str], named: str, tmp_path: Path) -> None:
    with pytest.raises(AllMemError, match=named):
        load_recipe(write(tmp_path, GOOD), settings)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(AllMemError, match="data, training must be given"):
        load_recipe(write(tmp_path, {"model": "a", "output": "b"}))
    with pytest.raises(AllMemError, match="there is no file"):
        load_recipe(str(tmp_path / "none.yaml"))
    with pytest.raises(AllMemError, match="smollm2-cpu"):
        load_recipe("smollm-cpu")


def test_the_presets_are_recipes() -> None:
    assert set(preset_names()) == {
        "smollm2",
        "smollm2-cpu",
        "smollm2-near",
        "qwen3-0.6b",
        "qwen3-1.7b",
    }
    for name in preset_names():
        recipe = load_recipe(name)
        assert recipe.training.objective.divergence == "forward_kl"


def test_sources_check_themselves() -> None:
    with pytest.raises(AllMemError, match="found none"):
        DataSource()
    with pytest.raises(AllMemError, match="is for folder, texts"):
        DataSource(facts=FactLists(counts=(4,)), held_out="b.txt")
    with pytest.raises(AllMemError, match="mix is for a folder"):
        DataSource(texts=("a",), mix={"long": 1})
    with pytest.raises(AllMemError, match="length = 0"):
        DataSource(texts=("a",), length=0)
    with pytest.raises(AllMemError, match="do not go together"):
        TeacherSource(model="x")
    assert json.loads(json.dumps({"kind": TeacherSource().kind})) == {"kind": "own"}
