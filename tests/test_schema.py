"""Values of another type than a field has are told by name, with what can stand there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from allmem.config import MemoryConfig, Options, WindowConfig
from allmem.errors import AllMemError
from allmem.mixers.registry import mixer_kind, mixer_names
from allmem.schema import build_from, misfit


@dataclass(frozen=True)
class Choices:
    """What a file may say."""

    include: tuple[Literal["mixers", "ablations"], ...] = ()
    seeds: tuple[int, ...] = ()
    pair: tuple[int, str] = (1, "a")
    weights: dict[str, float] | None = None
    folder: Path | None = None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"include": ["mixer"]},
            "include entry = 'mixer' must be one of 'mixers', 'ablations'; did you mean 'mixers'?",
        ),
        (
            {"include": ["mixers", 3]},
            "include entry = 3 must be one of 'mixers', 'ablations'",
        ),
        ({"include": "mixers"}, "include = 'mixers' must be a list"),
        ({"seeds": [1, "a"]}, "seeds entry = 'a' must be a whole number"),
        ({"seeds": 3}, "seeds = 3 must be a list"),
        ({"weights": {"a": 1, "b": "x"}}, "weights: b = 'x' must be a number"),
        ({"weights": 3}, "weights = 3 must be keys and values or empty"),
    ],
)
def test_what_does_not_fit_is_named(values: dict[str, Any], said: str) -> None:
    with pytest.raises(AllMemError) as caught:
        build_from(Choices, values, "file")
    assert str(caught.value) == f"file: {said}"


def test_what_fits_passes_and_types_that_no_file_holds_are_not_checked() -> None:
    values = {"include": ["mixers"], "seeds": [], "weights": {"a": 1}, "folder": "x"}
    assert build_from(Choices, values, "file").include == ("mixers",)
    assert misfit("pair", [1, "a"], tuple[int, str]) is None
    assert misfit("names", ["a"], list[str]) is None


@pytest.mark.parametrize(
    ("mixer", "values", "said"),
    [
        ("titans", {"base_lr": "abc"}, "TitansOptions: base_lr = 'abc' must be a number"),
        ("gla", {"normaliser": "abc"}, "GlaOptions: normaliser = 'abc' must be a number"),
        ("gla", {"normaliser": True}, "GlaOptions: normaliser = True must be a number"),
        ("gla", {"gate": "sigmoit"}, "GlaOptions: unknown gate 'sigmoit'; did you mean 'sigmoid'"),
        ("gla", {"gate": ["silu"]}, "GlaOptions: unknown gate ['silu']"),
        ("ttt_linear", {"base_lr": []}, "TTTOptions: base_lr = [] must be a number"),
        ("allmem", {"step": "abc"}, "MemoryConfig: step = 'abc' must be a number"),
        ("allmem", {"clip": "abc"}, "MemoryConfig: clip = 'abc' must be a number or empty"),
        ("allmem", {"momentum": "no"}, "MemoryConfig: momentum = 'no' must be true or false"),
        ("allmem", {"width": 2.5}, "MemoryConfig: width = 2.5 must be a whole number or empty"),
        ("allmem", {"norm_matrices": "up"}, "MemoryConfig: norm_matrices = 'up' must be a list"),
        ("allmem", {"norm_matrices": [1]}, "norm_matrices entry = 1 must be text"),
        ("several", {"parts": "allmem"}, "SeveralOptions: parts = 'allmem' must be a list"),
    ],
)
def test_options_of_another_type_are_refused(mixer: str, values: dict[str, Any], said: str) -> None:
    kind = mixer_kind(mixer)
    assert kind is not None
    with pytest.raises(AllMemError) as caught:
        kind.options(values)
    assert said in str(caught.value)


@pytest.mark.parametrize("mixer", mixer_names())
def test_the_options_of_every_mixer_are_of_the_types_that_they_state(mixer: str) -> None:
    kind = mixer_kind(mixer)
    if kind is not None:
        options = kind.options({})
        assert kind.options(options.to_dict()) == options


def test_a_whole_number_may_stand_for_a_number() -> None:
    assert MemoryConfig.from_dict({"clip": 2, "step": 1}).clip == 2
    with pytest.raises(AllMemError, match="window = True must be a whole number"):
        WindowConfig.from_dict({"window": True})


@dataclass(frozen=True)
class Foreign(Options):
    """Options with types that are not known here."""

    folder: Path = Path()
    names: frozenset[str] = frozenset()


def test_types_that_are_not_known_pass() -> None:
    assert Foreign.from_dict({"folder": "x", "names": 3}) == Foreign("x", 3)  # type: ignore[arg-type]


def test_types_that_cannot_be_resolved_pass() -> None:
    class Unknown:
        """Not to be found from the module."""

    @dataclass(frozen=True)
    class Local(Options):
        what: Unknown | None = None

    assert Local.from_dict({"what": "x"}).what == "x"  # type: ignore[comparison-overlap]
