"""KV policies: the contract, and what each token sees by a plain reading of the rules."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from allmem.attention.rotary import Rotary
from allmem.config import WindowConfig
from allmem.layout import Layout
from allmem.memory.projections import Wanted
from allmem.mixers.attention import AttentionShape, WindowMixer
from allmem.mixers.base import Mixer
from allmem.mixers.compacting import CompactingMixer
from allmem.mixers.conformance import MixerConformance
from allmem.mixers.registry import Place, attention_kind
from allmem.models.structure import attention_shape, layer_rotary
from tests.mixers.kv_oracle import Oracle
from tests.mixers.test_conformance import HIDDEN, attention_mixer, tiny_base

WINDOW = WindowConfig(window=12, sinks=2)
CPU = torch.device("cpu")
PLACE = Place(number=5, layers=8)

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "ladder": ("ladder", {"interval": 3}),
    "ladder-of-overlaps": ("ladder", {"slots": 20, "interval": 2, "span": 5, "overlap": 3}),
    "ladder-cyclic": ("ladder", {"interval": 3, "order": "cyclic"}),
    "ladder-by-default": ("ladder", {}),
    "eviction": ("eviction", {"interval": 3}),
    "eviction-for-a-question": ("eviction", {"interval": 3, "priority": 4, "sinks": 0}),
    "eviction-by-default": ("eviction", {}),
    "blocks": ("blocks", {"slots": 17, "block": 3, "retrieved": 2, "representatives": 2}),
    "blocks-asked-seldom": ("blocks", {"slots": 17, "block": 3, "retrieved": 2, "lookup": 4}),
    "blocks-by-default": ("blocks", {}),
}


def policy_mixer(
    name: str, options: dict[str, Any], place: Place = PLACE, rotary: Any = "of the base"
) -> CompactingMixer[Any]:
    base = tiny_base()
    core = base.base_model.layers[0].self_attn
    kind = attention_kind(name)
    assert kind is not None
    own: Rotary | None = layer_rotary(base, core, 0, WINDOW)
    turns = own if rotary == "of the base" else rotary
    shape = attention_shape(base.config)
    mixer = kind.build(core, shape, turns, WINDOW, kind.options(options), place)
    assert isinstance(mixer, CompactingMixer)
    return mixer


class TestContract(MixerConformance):
    """The contract, with every option that changes what is seen."""

    hidden_size = HIDDEN
    counts_flops = False
    name: str
    options: dict[str, Any]

    @pytest.fixture(autouse=True, params=CASES.values(), ids=CASES.keys())
    def choose(self, request: pytest.FixtureRequest) -> None:
        self.name, self.options = request.param

    def make_mixer(self) -> Mixer:
        return policy_mixer(self.name, self.options)


ROTARIES: dict[str, Rotary | None] = {
    "rotary": Rotary((1.0, 0.3, 0.05, 0.01)),
    "half-rotated-and-scaled": Rotary((1.0, 0.1), scaling=1.3),
    "no-positions": None,
}


@pytest.mark.parametrize("rotary", ROTARIES)
@pytest.mark.parametrize("case", CASES)
def test_every_token_sees_what_the_rule_says(case: str, rotary: str) -> None:
    name, options = CASES[case]
    mixer = policy_mixer(name, options, rotary=ROTARIES[rotary])
    T = 61
    generator = torch.Generator().manual_seed(3)
    q, k, v = (
        torch.randn(1, heads, T, 8, generator=generator, dtype=torch.float64) for heads in (4, 2, 2)
    )
    expected, seen = Oracle(name, mixer.rotary, **numbers(mixer)).read(q[0], k[0], v[0])
    state = mixer.init_state(1, torch.float64, CPU)
    y, _ = mixer.mix(q, k, v, state, Layout.dense(0, 1, T, CPU), 8**-0.5)
    torch.testing.assert_close(y[0], expected, atol=1e-10, rtol=0)
    assert mixer.pairs(T) == sum(map(len, seen))
    # Otherwise nothing was shown.
    assert any(len(positions) < t + 1 for t, positions in enumerate(seen))


def numbers(mixer: CompactingMixer[Any]) -> dict[str, Any]:
    """Of a mixer, as its rule is explained."""
    sizes = mixer.sizes(mixer.window)
    return {**dataclasses.asdict(mixer.options), **dataclasses.asdict(sizes)}


@pytest.mark.parametrize("case", CASES)
def test_long_rows_of_unlike_lengths_are_read_as_if_alone(case: str) -> None:
    mixer = policy_mixer(*CASES[case]).double()
    lengths = torch.tensor([47, 33, 40])
    x = torch.randn(3, 47, HIDDEN, dtype=torch.float64)
    # Where each row stands after each of three calls: intervals end in different ones.
    stops = torch.tensor([[20, 13, 31], [29, 30, 32], lengths.tolist()])
    state, start, pieces = mixer.init_state(3, torch.float64, CPU), torch.zeros(3).long(), []
    for stop in stops:
        count = stop - start
        slots = int(count.max()) + 1
        piece = torch.full((3, slots, HIDDEN), torch.nan, dtype=torch.float64)
        for row in range(3):
            piece[row, : count[row]] = x[row, start[row] : stop[row]]
        y, state = mixer(piece, state, Layout.ragged(start, count, CPU, slots=slots))
        pieces.append((y, count))
        start = stop
    for row, length in enumerate(lengths.tolist()):
        together = torch.cat([y[row, : count[row]] for y, count in pieces])
        layout = Layout.dense(0, 1, length, CPU)
        alone, own = mixer(
            x[row : row + 1, :length], mixer.init_state(1, torch.float64, CPU), layout
        )
        torch.testing.assert_close(together, alone[0], atol=1e-8, rtol=0)
        # Padding has looked at nothing and asked for nothing.
        beside = state.select(torch.tensor([row])).tensors()
        for name in {"scores", "received", "asking"} & beside.keys():
            torch.testing.assert_close(beside[name], own.tensors()[name], atol=1e-8, rtol=0)


def test_the_projections_that_it_hands_over_are_those_before_positions() -> None:
    x = torch.randn(1, 9, HIDDEN, dtype=torch.float64)
    layout = Layout.dense(0, 1, 9, CPU)
    ladder, window = policy_mixer("ladder", {}).double(), attention_mixer(WindowMixer, WINDOW)
    found = [
        mixer.attend(x, mixer.init_state(1, torch.float64, CPU), layout, Wanted.FEATURES)[2]
        for mixer in (ladder, window.double())
    ]
    policy, plain = found
    assert policy is not None
    assert plain is not None
    for name in ("q", "k", "v"):
        torch.testing.assert_close(getattr(policy, name), getattr(plain, name))


# The ladder, as the paper draws it


@pytest.mark.parametrize(
    ("layers", "span", "overlap"), [(8, 4, 0), (8, 3, 1), (24, 9, 7), (9, 4, 0)]
)
def test_every_layer_keeps_what_the_paper_s_ladder_gives_it(
    layers: int, span: int, overlap: int
) -> None:
    options = {"slots": 64, "span": span, "overlap": overlap}
    sizes = [
        mixer.sizes(WINDOW)
        for mixer in (policy_mixer("ladder", options, Place(i, layers)) for i in range(layers))
    ]
    kept = [set(range(s.offset, s.offset + s.stay)) for s in sizes]
    group = sizes[0].group
    for token in range(group):
        first = token * (span - overlap)
        for layer in range(first, min(first + span, layers)):
            assert token in kept[layer]
    assert set.union(*kept) == set(range(group))
    assert len({len(tokens) for tokens in kept}) == 1
    assert len(kept[0]) < group


def test_ladders_together_see_more_of_the_past_than_a_window() -> None:
    # Uniform attention, and each value says which token it is of.
    T, layers = 60, 8
    v = torch.eye(T, dtype=torch.float64)[None, None]
    zeros = torch.zeros(1, 1, T, T, dtype=torch.float64)
    kind = attention_kind("ladder")
    assert kind is not None
    seen = []
    for i in range(layers):
        options = kind.options({"slots": 24, "sinks": 2, "interval": 2, "recent": 4})
        shape = AttentionShape(hidden_size=T, query_heads=1, kv_heads=1, head_dim=T)
        mixer = kind.build(nn.Module(), shape, None, WINDOW, options, Place(i, layers))
        state = mixer.init_state(1, torch.float64, CPU)
        y, _ = mixer.mix(zeros, zeros, v, state, Layout.dense(0, 1, T, CPU), 1.0)
        seen.append(set((y[0, 0, -1] > 0).nonzero()[:, 0].tolist()))
    assert all(len(tokens) <= 24 for tokens in seen)
    assert all({0, 1} <= tokens for tokens in seen)
    assert all(set(range(T - 4, T)) <= tokens for tokens in seen)
    # A window of as many keys sees 24 in all layers together.
    assert len(set.union(*seen)) > 30
    assert min(set.union(*seen) - {0, 1}) < T // 2


# A question before the text


def test_what_a_question_before_the_text_asks_for_stays() -> None:
    T, E, wanted = 60, 8, 13
    generator = torch.Generator().manual_seed(0)
    k = 0.1 * torch.randn(1, 1, T, E, generator=generator, dtype=torch.float64)
    q = 0.1 * torch.randn(1, 1, T, E, generator=generator, dtype=torch.float64)
    k[0, 0, wanted, 0] = 5
    q[0, 0, 2, 0] = 5
    seen = []
    for priority in (0, 4):
        mixer = policy_mixer("eviction", {"interval": 3, "priority": priority}, rotary=None)
        oracle = Oracle("eviction", None, **numbers(mixer))
        _, positions = oracle.read(q[0], k[0], k[0])
        both = q.expand(-1, 4, -1, -1), k.expand(-1, 2, -1, -1)
        state = mixer.init_state(1, torch.float64, CPU)
        _, state = mixer.mix(both[0], both[1], both[1], state, Layout.dense(0, 1, T, CPU), E**-0.5)
        place = (state.cache.keys[0, 0, : len(positions[-1]), 0] > 4).nonzero()[:, 0].tolist()
        assert place == ([positions[-1].index(wanted)] if wanted in positions[-1] else [])
        seen.append(wanted in positions[-1])
    assert seen == [False, True]
