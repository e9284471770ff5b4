"""Several memories in one layer: the contract, what the parts add up to, and who writes what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import allmem
from allmem.choices import Limits
from allmem.config import WindowConfig
from allmem.errors import AllMemError
from allmem.layout import Layout
from allmem.memory.projections import AttentionWeights, Wanted
from allmem.mixers.allmem import AllMemMixer
from allmem.mixers.base import Mixer
from allmem.mixers.conformance import MixerConformance, randomise
from allmem.mixers.layer import LayerMixer
from allmem.mixers.matching import Slot, count, match
from allmem.mixers.parts import SeveralOptions
from allmem.mixers.registry import memory_kind
from allmem.mixers.several import SeveralMixer
from allmem.models.cache import AllMemCache
from tests.mixers.test_conformance import attention_mixer
from tests.models.tiny import C, S, W, assert_close, base_model, logits, logits_in_calls, text

HIDDEN = 24
ATTENTION = AttentionWeights(query_heads=4, kv_heads=2, head_dim=8)
CPU = torch.device("cpu")


def part(mixer: str, **options: Any) -> dict[str, Any]:
    return {"mixer": mixer, "options": options}


DELTA = part("gated_deltanet", block=5)
WINDOW = WindowConfig(window=7, sinks=2)
NARROW = WindowConfig(window=3, sinks=1)

CASES: dict[str, tuple[str, dict[str, Any], WindowConfig]] = {
    "several": ("several", {"chunk": 5}, WINDOW),
    "periods": (
        "multiscale",
        {"parts": [part("allmem", chunk=2, conv=0, gate=False), part("allmem", chunk=5)]},
        WINDOW,
    ),
    "summed": ("several", {"parts": [DELTA, DELTA], "scale": "none"}, WINDOW),
    "routed": (
        "routed",
        {"parts": [part("allmem", chunk=2), DELTA, DELTA], "scale": "none"},
        WINDOW,
    ),
    "of-several": ("several", {"parts": [DELTA, part("several", parts=[DELTA, DELTA])]}, WINDOW),
    "evicted": ("several", {"chunk": 5, "write_scope": "evicted"}, WINDOW),
    # Few tokens leave the window within the eleven of the finite differences: no decay would show.
    "evicted-routed": (
        "routed",
        {"parts": [part("deltanet", block=5)] * 3, "write_scope": "evicted"},
        NARROW,
    ),
}


def several(name: str = "several", window: WindowConfig = WINDOW, **options: Any) -> Mixer:
    torch.manual_seed(1)
    kind = memory_kind(name)
    assert kind is not None
    return kind.make(HIDDEN, kind.options(options), ATTENTION, window)


def randomised(name: str = "several", **options: Any) -> SeveralMixer:
    mixer = several(name, **options).double()
    randomise(mixer)
    assert isinstance(mixer, SeveralMixer)
    return mixer


def inputs(rows: int, length: int) -> Tensor:
    g = torch.Generator().manual_seed(1)
    return torch.randn(rows, length, HIDDEN, generator=g, dtype=torch.float64)


def read(mixer: Mixer, x: Tensor, layout: Layout | None = None) -> Tensor:
    layout = layout or Layout.dense(0, x.shape[0], x.shape[1], CPU)
    y, _ = mixer(x, mixer.init_state(x.shape[0], x.dtype, CPU), layout)
    return y


class TestSeveral(MixerConformance):
    """The contract, with every option."""

    hidden_size = HIDDEN
    case: tuple[str, dict[str, Any], WindowConfig]

    @pytest.fixture(autouse=True, params=CASES.values(), ids=CASES.keys())
    def choose(self, request: pytest.FixtureRequest) -> None:
        self.case = request.param

    def make_mixer(self) -> Mixer:
        name, options, window = self.case
        return several(name, window, **options)


def test_the_sum_is_that_of_the_parts_and_their_scales() -> None:
    mixer = randomised("multiscale", chunk=16)
    x = inputs(2, 40)
    said = [read(one, x) for one in mixer.mixers()]
    expected = said[0] + mixer.scales[0] * said[1] + mixer.scales[1] * said[2]
    torch.testing.assert_close(read(mixer, x), expected, rtol=0, atol=1e-12)


def test_every_part_has_a_period_of_its_own() -> None:
    """What a part says of a token changes with earlier ones only from its next chunk on."""
    mixer = randomised("multiscale", chunk=16)
    # No convolution beside the chunks.
    for one in mixer.mixers():
        assert isinstance(one, AllMemMixer)
        for taps in one.unit.convolutions.values():
            taps.data[1:] = 0
    x = inputs(1, 32)
    other = x.clone()
    other[:, 2] += 1
    found = []
    for one in mixer.mixers():
        changed = (read(one, other) - read(one, x)).abs().amax((0, 2)) > 1e-12
        found.append(next(i for i in range(32) if changed[i] and i != 2))
    assert found == [3, 4, 16]


@pytest.mark.parametrize(("asked", "chunks"), [(16, [1, 4, 16]), (32, [2, 8, 32]), (5, [1, 1, 5])])
def test_chunks_keep_their_proportions(asked: int, chunks: list[int]) -> None:
    """Chosen with the configuration, or for one reading."""
    kind = memory_kind("multiscale")
    assert kind is not None
    options = kind.options({"chunk": asked})
    assert [p["options"]["chunk"] for p in options.parts] == chunks
    assert options.chunk == asked

    mixer, chosen = randomised("multiscale", chunk=64), randomised("multiscale", chunk=asked)
    chosen.load_state_dict(mixer.state_dict())
    x = inputs(1, 70)
    layout = Layout.dense(0, 1, 70, CPU)
    torch.testing.assert_close(
        read(mixer, x, layout.read_with(None, asked)), read(chosen, x, layout), rtol=0, atol=1e-12
    )


def test_a_routed_part_is_what_it_would_be_alone_with_its_tokens() -> None:
    """Without a convolution, a part that knew of no others would say the same."""
    parts = [part("gated_deltanet", conv=0, block=4)] * 3
    mixer = randomised(parts=parts, route="topk")
    x = inputs(1, 30)
    chances = (x @ mixer.router.weight.T + mixer.router.bias)[0]
    best = chances.topk(2).indices
    expected = torch.zeros_like(x[0])
    for i, one in enumerate(mixer.mixers()):
        mine = (best == i).any(-1).nonzero()[:, 0]
        assert 0 < len(mine) < 30
        said = read(one, x[:, mine])[0]
        if i:
            said = said * mixer.scales[i - 1]
        weights = chances[mine].gather(1, best[mine]).softmax(-1)
        share = torch.where(best[mine] == i, weights, 0).sum(-1, keepdim=True)
        expected[mine] += share * said
    torch.testing.assert_close(read(mixer, x)[0], expected, rtol=0, atol=1e-10)


def test_the_load_is_the_share_of_tokens_that_a_part_gets() -> None:
    mixer = randomised("routed")
    x = inputs(2, 20)
    layout = Layout.ragged(torch.zeros(2).long(), torch.tensor([20, 7]), CPU)
    x[1, 7:] = float("nan")
    load = mixer.router_load(x, layout)
    tokens = torch.cat([x[0], x[1, :7]])
    best = (tokens @ mixer.router.weight.T + mixer.router.bias).topk(2).indices
    torch.testing.assert_close(load, best.flatten().bincount(minlength=4) / 27)
    assert float(load.sum()) == pytest.approx(2)


def test_a_new_router_sends_tokens_everywhere() -> None:
    mixer = several("routed")
    assert isinstance(mixer, SeveralMixer)
    x = inputs(4, 100).float()
    assert float(mixer.router_load(x, Layout.dense(0, 4, 100, CPU)).min()) > 0.1


def test_parts_share_what_one_memory_would_hold() -> None:
    one, four = several("gated_deltanet", conv=0), several("routed")
    same = several(parts=[part("gated_deltanet", conv=0)] * 4)
    bytes_of = [m.state_bytes(0, torch.float32) for m in (one, same)]
    assert bytes_of[0] == bytes_of[1]
    assert [p.shell.key_dim for p in four.parts] == [3] * 4  # type: ignore[union-attr]
    assert [p.shell.value_dim for p in four.parts] == [12] * 4  # type: ignore[union-attr]
    uneven = several("multiscale", size=14)
    assert [p.unit.width for p in uneven.parts] == [5, 5, 4]  # type: ignore[union-attr]
    kept = several(parts=[part("allmem", width=9), part("allmem"), DELTA], size=7)
    assert [kept.parts[0].unit.width, kept.parts[1].unit.width] == [9, 4]  # type: ignore[union-attr]
    options = SeveralOptions(parts=(part("allmem"), DELTA)).sized(HIDDEN, 2)
    assert options.size == 12


def test_parts_project_as_they_are_told_together() -> None:
    told = several(parts=[part("allmem"), part("allmem", projections="lowrank", rank=2)])
    kinds = [p.unit.projections.kind for p in told.parts]  # type: ignore[union-attr]
    assert kinds == ["full", "lowrank"]
    parts = [part("allmem"), part("allmem", projections="lowrank", rank=2)]
    told = several(parts=parts, projections="lowrank", rank=3)
    shapes = [p.unit.projections.q.down.shape for p in told.parts]  # type: ignore[union-attr]
    assert shapes == [(3, HIDDEN), (2, HIDDEN)]


@pytest.mark.parametrize("name", ["multiscale", "routed", "several"])
def test_sizes_can_be_matched_to_another_memory(name: str) -> None:
    slot = Slot(
        64, AttentionWeights(query_heads=4, kv_heads=2, head_dim=16), WindowConfig(32, 2), 16
    )
    found = match(name, slot, count("allmem", {"chunk": 16}, slot))
    assert found.within(Limits())


def test_gradients_reach_every_part_as_soon_as_alpha_moves() -> None:
    """At their starting values; alpha alone has a gradient before."""
    mixer = several("multiscale", chunk=4).double()
    x = inputs(1, 24)
    probe = torch.randn(HIDDEN, dtype=torch.float64)
    total = (read(mixer, x) * probe).sum()
    assert float(total.detach()) != 0
    gradients = torch.autograd.grad(total, list(mixer.parameters()), allow_unused=True)
    names = [n for n, _ in mixer.named_parameters()]
    silent = {n for n, g in zip(names, gradients, strict=True) if g is None or not bool(g.any())}
    assert not silent


def test_a_part_may_share_the_attention_s_projections() -> None:
    from allmem.mixers.attention import WindowMixer

    attention = attention_mixer(WindowMixer, WINDOW)
    shared = part("gated_deltanet", projections="shared", rank=3)
    memory = several(parts=[shared, part("allmem", chunk=4)])
    assert memory.wants == Wanted.FEATURES
    layer = LayerMixer(attention, memory).double()
    randomise(layer)
    x = inputs(1, 20)
    whole = read(layer, x)
    state, pieces = layer.init_state(1, x.dtype, CPU), []
    for first in range(0, 20, 3):
        now = x[:, first : first + 3]
        y, state = layer(now, state, Layout.dense(first, 1, now.shape[1], CPU))
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=0, atol=1e-9)


# In a model


@pytest.mark.parametrize("name", ["several", "multiscale", "routed"])
def test_options_survive_json(name: str) -> None:
    kind = memory_kind(name)
    assert kind is not None
    options = kind.options({})
    again = kind.options(json.loads(json.dumps(options.to_dict())))
    assert again == options
    assert again.to_dict() == options.to_dict()


@pytest.mark.parametrize("name", ["several", "routed"])
def test_a_model_is_saved_and_read_in_parts(name: str, tmp_path: Path) -> None:
    model = allmem.convert(
        base_model(), window=W, sinks=S, chunk=C if name == "several" else None, mixers=name
    )
    model.double()
    randomise(model)
    assert model.config.chunk == (C if name == "several" else None)
    ids = text(2, 33)
    whole = logits(model, ids)
    assert_close(logits_in_calls(model, ids.tensor_split([1, 7, 20], dim=1)), whole, 1e-8)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert loaded.config.mixer_options == model.config.mixer_options
    assert_close(logits(loaded, ids), whole, 1e-12)


def chunks_of(**settings: Any) -> list[int]:
    model = allmem.convert(base_model(), window=W, sinks=S, **settings)
    (options,) = model.config.mixer_options.values()
    return [p["options"]["chunk"] for p in options["parts"]]


def test_a_conversion_chooses_the_largest_chunk() -> None:
    assert chunks_of(mixers="multiscale") == [1, 1, 6]
    assert chunks_of(mixers="multiscale", chunk=12) == [1, 3, 12]
    named = {"several": {"parts": [part("allmem", chunk=3), part("allmem", chunk=9)]}}
    assert chunks_of(mixers="several", mixer_options=named) == [3, 9]
    assert chunks_of(mixers="several", mixer_options=named, chunk=9) == [3, 9]
    with pytest.raises(
        AllMemError, match=r"chunk = 4, but mixer_options\['several'\] has chunk = 9"
    ):
        chunks_of(mixers="several", mixer_options=named, chunk=4)
    with pytest.raises(AllMemError, match="choose chunk <= 12"):
        chunks_of(mixers="multiscale", chunk=13)


def test_a_cache_may_ask_for_another_chunk_and_the_parts_follow() -> None:
    model = allmem.convert(base_model(), window=W, sinks=S, chunk=8, mixers="multiscale").double()
    randomise(model)
    other = allmem.convert(base_model(), window=W, sinks=S, chunk=4, mixers="multiscale").double()
    other.load_state_dict(model.state_dict())
    ids = text(1, 30)
    cache = AllMemCache(model.config, chunk=4)
    with torch.no_grad():
        read = model(input_ids=ids, past_key_values=cache).logits
    # Chunks of 8, 2, 1 are asked to be 4, 1, 1.
    assert_close(read, logits(other, ids), 1e-10)
    with pytest.raises(AllMemError, match="smaller than chunk"):
        AllMemCache(model.config, chunk=W + 1)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "one-part": ({"parts": [DELTA]}, "names 1; name two memories"),
    "no-mixer": ({"parts": [DELTA, {"options": {}}]}, "part 1: .* names no mixer"),
    "unknown-mixer": (
        {"parts": [DELTA, part("alllmem")]},
        "part 1: unknown mixer .* mean 'allmem'",
    ),
    "no-memory": ({"parts": [DELTA, part("window")]}, "part 1: 'window' is no memory"),
    "unknown-option": ({"parts": [DELTA, part("allmem", chnk=3)]}, "part 1: .* mean 'chunk'"),
    "unknown-key": ({"parts": [DELTA, {**DELTA, "option": {}}]}, "part 1: .* mean 'options'"),
    "bad-value": ({"parts": [part("allmem", chunk=0), DELTA]}, "part 0: .* chunk = 0"),
    "evicted-part": ({"parts": [DELTA, part("ahn_deltanet")]}, "part 1 .*chosen for all parts"),
    "one-chosen": ({"route": "topk", "topk": 1}, "topk = 1 of 2 parts"),
    "more-than-all": ({"route": "topk", "topk": 3}, "topk = 3 of 2 parts"),
    "no-chunks": ({"parts": [DELTA, DELTA], "chunk": 4}, "no part writes in chunks"),
    "shared": (
        {"parts": [DELTA, part("allmem", projections="shared")], "route": "topk"},
        "part 1 .allmem. has projections = 'shared'",
    ),
    "all-shared": ({"projections": "shared", "route": "topk"}, "part 0 .*'shared'"),
    "fused": ({"parts": [DELTA, part("titans", fusion="stack")]}, "part 1 .*needs a layer"),
    "route": ({"route": "topp"}, "mean 'topk'"),
}


@pytest.mark.parametrize(("options", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_bad_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(AllMemError, match=words):
        SeveralOptions.from_dict(options)


def test_too_little_to_share_is_refused() -> None:
    with pytest.raises(AllMemError, match="size = 3 cannot be shared by 4 parts"):
        several("routed", size=3)


def test_a_chunk_is_refused_where_no_part_has_one() -> None:
    with pytest.raises(AllMemError, match="a chunk were given"):
        allmem.convert(base_model(), window=W, sinks=S, chunk=C, mixers="routed")


def test_a_part_that_cannot_leave_out_tokens_is_refused() -> None:
    from examples import my_mixer

    assert my_mixer.MineMixer
    parts = [part("mine"), DELTA]
    assert several(parts=parts)
    with pytest.raises(AllMemError, match=r"part 0 \(mine\) writes every token"):
        several(parts=parts, route="topk")
