"""What cannot be is refused in one line that names the value and the nearest thing that can."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from allmem.data.builders import BUILDERS
from allmem.data.config import DataConfig, load_config
from allmem.errors import AllMemError
from allmem.schema import build_from

GOOD: dict[str, Any] = {"model": "smollm2", "sources": [{"path": "a.jsonl"}]}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"modle": "x"}, "did you mean 'model'"),
        ({"seed": "x"}, "seed = 'x' must be a whole number"),
        ({"pack": 1}, "pack = 1 must be true or false"),
        ({"cut": "right"}, "one of 'middle', 'left'"),
        ({"sources": []}, "sources is empty"),
        ({"sources": [{"path": "a", "hub": "b"}]}, "give one of path, hub and build"),
        ({"sources": [{}]}, "give one of path, hub and build"),
        ({"sources": [{"pth": "a"}]}, "source 1: unknown key 'pth'; did you mean 'path'"),
        ({"sources": [{"path": "a", "take": 0}]}, "take = 0 must be positive"),
        ({"sources": [{"path": "a", "length": "lang"}]}, "did you mean 'long'"),
        ({"sources": [{"build": "facts"}]}, "needs take"),
        ({"sources": [{"path": "a", "options": {"x": 1}}]}, "options are for builders"),
        ({"lengths": {}}, "lengths is empty"),
        ({"lengths": {"long": 0}}, "long = 0 must be positive"),
        ({"lengths": {"a b": 5}}, "plain word"),
        ({"lengths": {"a": 5, "b": 5}}, "same length"),
        ({"filters": {"min_token": 3}}, "did you mean 'min_tokens'"),
        ({"filters": {"mojibake": "eat"}}, "one of 'drop', 'fix', 'keep'"),
        ({"filters": {"max_repetition": 3}}, "max_repetition = 3"),
        ({"shard_tokens": 0}, "shard_tokens = 0"),
        ({"similarity": 0.0}, "similarity = 0.0"),
    ],
)
def test_a_wrong_value_is_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(AllMemError, match=says) as caught:
        build_from(DataConfig, {**GOOD, **change}, "recipe.yaml")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("recipe.yaml: ")


def test_what_is_missing_is_named() -> None:
    with pytest.raises(AllMemError, match="model, sources must be given"):
        build_from(DataConfig, {}, "recipe.yaml")


def test_a_file_is_read_and_overridden(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: smollm2\nsources:\n  - path: a.jsonl\nseed: 3\n")
    assert load_config(str(path)).seed == 3
    assert load_config(str(path), seed=4, model=None).seed == 4


@pytest.mark.parametrize(
    ("text", "says"), [("a: [", "is not YAML"), ("- a", "expected keys"), ("", "expected keys")]
)
def test_a_broken_file_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(AllMemError, match=says):
        load_config(str(path))
    with pytest.raises(AllMemError, match="there is no file"):
        load_config(str(tmp_path / "none.yaml"))


def test_equal_choices_have_equal_fingerprints() -> None:
    first, again = (build_from(DataConfig, dict(GOOD), "x") for _ in range(2))
    other = build_from(DataConfig, {**GOOD, "seed": 1}, "x")
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()


def test_the_recipes_of_the_documentation_are_valid() -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    recipes = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert len(recipes) >= 3
    for recipe in recipes:
        values = {"model": "smollm2", **yaml.safe_load(recipe)}
        for source in build_from(DataConfig, values, "docs/data.md").parsed_sources:
            if source.build is not None:
                build_from(BUILDERS[source.build], source.options, source.label)  # type: ignore[arg-type]
