"""``read_scope = lost``: a text that fits into the window is read by the attention alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from allmem.config import WindowConfig
from allmem.distill.matching import counted_rows
from allmem.errors import AllMemError
from allmem.layout import Layout
from allmem.mixers.attention import FullMixer
from allmem.mixers.base import Mixer
from allmem.mixers.conformance import MixerConformance, randomise
from allmem.mixers.layer import LayerMixer
from allmem.token_layout import TokenLayout
from tests.mixers.test_conformance import attention_mixer
from tests.mixers.test_fusion import CPU, HIDDEN, WINDOW, layer, read

WHOLE = WINDOW.window + WINDOW.sinks
OTHER = WindowConfig(window=11, sinks=3)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "allmem": ("allmem", {"chunk": 5}),
    "allmem-evicted": ("allmem", {"chunk": 5, "write_scope": "evicted", "projections": "lowrank"}),
    "matrix": ("gated_deltanet", {"block": 5}),
    "stack": ("titans", {"fusion": "stack", "width": 7, "mini_batch": 5}),
    "context": ("titans", {"fusion": "context", "width": 7, "mini_batch": 5}),
    "several": ("several", {"chunk": 5}),
}


def scoped(name: str, options: dict[str, Any], scope: str = "lost") -> LayerMixer:
    return layer(name, **{"read_scope": scope, **options})


def pair(name: str, options: dict[str, Any]) -> tuple[LayerMixer, LayerMixer]:
    """The same random layer, read by what is lost and by everything."""
    lost, everything = (scoped(name, options, scope).double() for scope in ("lost", "all"))
    randomise(lost)
    everything.load_state_dict(lost.state_dict())
    return lost, everything


class TestReadScope(MixerConformance):
    """A layer is a mixer, whoever hears its memory."""

    hidden_size = HIDDEN
    counts_flops = False
    name: str
    options: dict[str, Any]

    @pytest.fixture(autouse=True, params=CASES.values(), ids=CASES.keys())
    def choose(self, request: pytest.FixtureRequest) -> None:
        self.name, self.options = request.param

    def make_mixer(self) -> Mixer:
        return scoped(self.name, self.options)


def inputs(slots: int = 31) -> Tensor:
    torch.manual_seed(2)
    return torch.randn(2, slots, HIDDEN, dtype=torch.float64)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@torch.no_grad()
def test_the_first_tokens_are_the_attentions_own(case: tuple[str, dict[str, Any]]) -> None:
    lost, everything = pair(*case)
    x = inputs()
    y, alone = read(lost, x), read(lost.attention, x)
    assert torch.equal(y[:, :WHOLE], alone[:, :WHOLE])
    assert not torch.allclose(y[:, WHOLE], alone[:, WHOLE], atol=1e-3)
    assert not torch.allclose(read(everything, x)[:, :WHOLE], alone[:, :WHOLE], atol=1e-3)


@pytest.mark.parametrize("name", ["allmem", "allmem-evicted", "matrix", "several"])
@torch.no_grad()
def test_the_others_hear_all_that_was_written(name: str) -> None:
    lost, everything = pair(*CASES[name])
    x = inputs()
    assert torch.equal(read(lost, x)[:, WHOLE:], read(everything, x)[:, WHOLE:])


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@torch.no_grad()
def test_it_follows_the_window_of_the_call(case: tuple[str, dict[str, Any]]) -> None:
    made, _ = pair(*case)
    x = inputs()
    layout = Layout.dense(0, *x.shape[:2], CPU).read_with(OTHER, None)
    state = made.init_state(2, x.dtype, CPU, OTHER)
    alone = made.attention.init_state(2, x.dtype, CPU, OTHER)
    y, want = made(x, state, layout)[0], made.attention(x, alone, layout)[0]
    whole = OTHER.window + OTHER.sinks
    assert torch.equal(y[:, :whole], want[:, :whole])
    assert not torch.allclose(y[:, whole], want[:, whole], atol=1e-3)


@pytest.mark.parametrize("slots", [WHOLE - 1, WHOLE, WHOLE + 1, 31])
@torch.no_grad()
def test_a_text_that_nobody_continues(slots: int) -> None:
    """Where nothing is read, memories are not computed; the result is the same."""
    made, _ = pair(*CASES["allmem"])
    x = inputs(slots)
    layout = Layout.dense(0, 2, slots, CPU)
    last = layout.read_with(None, None, final=True)
    y, _ = made(x, made.state_before(2, x.dtype, CPU, last), last)
    torch.testing.assert_close(y, read(made, x), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_rows_that_stand_elsewhere() -> None:
    """Single tokens of rows, some of which still see all: with counts on the CPU and on the device
    as each row by itself."""
    made, _ = pair(*CASES["allmem"])
    x = inputs(WHOLE + 4)
    want = read(made, x)
    lengths = torch.tensor([WHOLE - 1, WHOLE + 3])
    layout = Layout.ragged(torch.zeros(2, dtype=torch.int64), lengths, CPU)
    _, state = made(x[:, : layout.slots], made.init_state(2, x.dtype, CPU), layout)
    following = x[torch.arange(2), lengths][:, None]
    eager = Layout.dense(lengths, 2, 1, CPU)
    for one in (eager, TokenLayout.next_of(lengths)):
        y, _ = made(following, state.clone(), one)
        torch.testing.assert_close(y[:, 0], want[torch.arange(2), lengths], rtol=1e-10, atol=1e-10)


def test_only_tokens_that_hear_count() -> None:
    made, _ = pair(*CASES["allmem"])
    layout = Layout.dense(0, 2, 31, CPU)
    counted = counted_rows(made, torch.ones(2, 30, dtype=torch.bool), layout)  # type: ignore[arg-type]
    assert not bool(counted[:, :WHOLE].any())
    assert bool(counted[:, WHOLE:30].all())


def test_it_needs_a_window() -> None:
    made = scoped(*CASES["allmem"])
    with pytest.raises(AllMemError, match="read_scope = 'lost' needs window attention"):
        LayerMixer(attention_mixer(FullMixer), made.memory)


def test_an_unknown_scope_is_refused() -> None:
    with pytest.raises(AllMemError, match="lost"):
        scoped("allmem", {"chunk": 5}, "losst")


def test_a_part_cannot_choose() -> None:
    part = {"mixer": "gated_deltanet", "options": {"read_scope": "lost"}}
    with pytest.raises(AllMemError, match="chosen for all parts"):
        scoped("several", {"parts": [part, {"mixer": "allmem"}]})
