"""Who takes part, and at which sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import allmem
from allmem import AllMemError
from allmem.arena.contenders import contenders
from allmem.arena.entrants import entrants_of
from allmem.arena.ground import Ground
from allmem.mixers.ablations import ABLATIONS
from allmem.mixers.registry import mixer_names
from allmem.models.sources import load_base
from tests.arena.tiny import REFERENCE, TEACHER, make_config


def planned(**changes: Any) -> dict[str, Any]:
    config = make_config("unused", **changes)
    return {one.name: one for one in contenders(config, Ground(config, 128))}


def test_everybody_has_the_size_of_the_reference() -> None:
    found = planned(
        entrants={
            "allmem": {"options": REFERENCE},
            "gated_deltanet": None,
            "wide": {"mixer": "window"},
            "every other layer": {"mixer": "allmem", "pattern": "allmem,window"},
            "no-momentum": {"ablation": "no-momentum"},
        }
    )
    assert list(found)[:3] == ["teacher", "window alone", "allmem"]
    wanted = found["allmem"].totals
    for name, one in list(found.items())[3:]:
        assert abs(one.totals.state_bytes / wanted.state_bytes - 1) <= 0.05, name
        if name != "wide":
            assert abs(one.totals.parameters / wanted.parameters - 1) <= 0.02, name
    assert found["wide"].parameter_difference is None
    assert found["wide"].sizes["window"] > 32
    assert found["every other layer"].totals.memory_layers == 1
    assert found["no-momentum"].options["momentum"] is False


def test_what_is_counted_is_what_a_model_with_weights_has() -> None:
    for one in planned().values():
        base = load_base(TEACHER, dtype=torch.float32)
        model = allmem.convert(base, **one.conversion.arguments())
        assert sum(p.numel() for p in model.memory_parameters().values()) == one.totals.parameters
        cache = allmem.AllMemCache(model.config)
        with torch.no_grad():
            model(torch.zeros(1, 128, dtype=torch.int64), past_key_values=cache)
        # Keys and values of the window, both layers.
        window = 2 * 2 * 2 * 32 * 32 * 4
        assert cache.nbytes - window == one.totals.state_bytes, one.name


def test_all_mixers_and_ablations_can_take_part() -> None:
    config = make_config("unused", include=["mixers", "ablations"], exclude=["kda", "muon"])
    names = set(entrants_of(config))
    assert names == {*mixer_names(), *ABLATIONS} - {"window", "full", "kda", "muon"}


def test_memories_can_take_part_writing_only_what_is_evicted() -> None:
    entrants = {
        "allmem": {"options": REFERENCE},
        "gla": None,
        # Writes what is evicted already; writes nothing; is no mixer's own name.
        "compressive": None,
        "ladder": None,
        "mine": {"mixer": "gla"},
    }
    sizes = {"window": 32, "chunk": 16}
    found = entrants_of(make_config("unused", entrants=entrants, include=["evicted"], sizes=sizes))
    assert set(found) - set(entrants) == {"allmem, evicted", "gla, evicted"}
    assert found["allmem, evicted"].options == {**REFERENCE, "write_scope": "evicted"}


def test_a_chunk_of_the_whole_window_is_written_when_it_leaves_anyway() -> None:
    entrants = {"allmem": {"options": REFERENCE}, "gla": None}
    sizes = {"window": 32, "chunk": 32}
    found = entrants_of(make_config("unused", entrants=entrants, include=["evicted"], sizes=sizes))
    assert set(found) - set(entrants) == {"gla, evicted"}
    # Sinks are never written, so there it makes a difference.
    sizes["sinks"] = 2
    found = entrants_of(make_config("unused", entrants=entrants, include=["evicted"], sizes=sizes))
    assert set(found) - set(entrants) == {"allmem, evicted", "gla, evicted"}


def test_a_mixer_that_is_listed_under_another_name_is_not_listed_twice() -> None:
    entrants = {"allmem": None, "mine": {"mixer": "kda"}}
    assert "kda" not in entrants_of(make_config("unused", entrants=entrants, include=["mixers"]))


SMALL = {"options": {"key_dim": 4, "value_dim": 4}}


def test_sizes_that_cannot_be_matched_are_refused_or_told() -> None:
    entrants = {"allmem": {"options": REFERENCE}, "small": {"mixer": "deltanet", **SMALL}}
    with pytest.raises(AllMemError) as error:
        planned(entrants=entrants)
    said = str(error.value)
    assert "entrant small: it has" in said
    assert "unmatched: [" in said
    found = planned(entrants=entrants, unmatched=["parameters", "state"])["small"]
    assert found.state_difference < -0.5
    assert "state" in found.outside(make_config("unused").limits)


def test_an_entrant_may_keep_its_own_sizes() -> None:
    entrants = {
        "allmem": {"options": REFERENCE},
        "as it is": {"mixer": "deltanet", "match": False},
    }
    with pytest.raises(AllMemError, match="entrant as it is"):
        planned(entrants=entrants)
    found = planned(entrants=entrants, unmatched=["parameters", "state"])["as it is"]
    assert found.options == {}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"entrants": {"allmem": None, "kad": None}}, "entrant kad: unknown mixer 'kad'"),
        (
            {"entrants": {"allmem": None, "kda": {"options": {"key_dims": 3}}}},
            "did you mean 'key_dim'",
        ),
        ({"reference": "almem"}, "reference: unknown entrant 'almem'; did you mean 'allmem'"),
        ({"exclude": ["x"]}, "exclude: unknown entrant 'x'"),
        ({"entrants": {"allmem": None, "teacher": {"mixer": "kda"}}}, "takes part in every arena"),
        (
            {"entrants": {"allmem": None, "x": {"ablation": "moun"}}},
            "unknown ablation 'moun'; did you mean 'muon'",
        ),
        (
            {"entrants": {"kda": None, "x": {"ablation": "muon"}}, "reference": "kda"},
            "ablations are of the mixer 'allmem'",
        ),
        (
            {"entrants": {"allmem": None, "kda": {"pattern": "kda,allmem"}}},
            "and besides it window and full alone",
        ),
        ({"entrants": {"allmem": None, "kda": {"pattern": "kda*3"}}}, "does not divide"),
        ({"entrants": {"allmem": None, "kda": {"keep_full": [7]}}}, "there is no layer 7"),
        (
            {"entrants": {"allmem": None, "w": {"mixer": "window", "options": {"widow": 3}}}},
            "did you mean 'window'",
        ),
        ({"reference": "w", "entrants": {"w": {"mixer": "window"}}}, "w has no memory"),
    ],
)
def test_bad_input_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(AllMemError) as error:
        planned(**changes)
    assert said in str(error.value)


def test_a_missing_teacher_is_named(tmp_path: Path) -> None:
    with pytest.raises(AllMemError, match="no folder or file"):
        planned(teacher=str(tmp_path / "none"))
