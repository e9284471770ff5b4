"""Memories that write what leaves the window (Artificial Hippocampus Networks), against the same
memory fed those tokens alone, and against AHN's own slices of a text; with keys and values of their
own, and with those that the window loses."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import allmem
from allmem.config import WindowConfig
from allmem.distill.matching import match_layers
from allmem.errors import AllMemError
from allmem.layout import Layout
from allmem.memory.projections import Features, Wanted
from allmem.mixers.attention import FullMixer, WindowMixer
from allmem.mixers.base import Mixer
from allmem.mixers.conformance import MixerConformance, randomise
from allmem.mixers.delta import DeltaMixer
from allmem.mixers.evicted import EvictedMixer
from allmem.mixers.layer import LayerMixer
from allmem.mixers.mamba2 import Mamba2Mixer
from allmem.mixers.matrix import MatrixMixer, MatrixState
from allmem.mixers.registry import memory_kind
from allmem.models.cache import AllMemCache
from allmem.models.modeling import AllMemForCausalLM
from tests.mixers.others import naive
from tests.mixers.small import ATTENTION, HIDDEN, WINDOW, small_memory
from tests.mixers.test_conformance import attention_mixer
from tests.models.tiny import W as MODEL_WINDOW
from tests.models.tiny import base_model, logits, read, text

CPU = torch.device("cpu")
W, S = WINDOW.window, WINDOW.sinks
AHN = ("ahn_deltanet", "ahn_gated_deltanet", "ahn_mamba2")
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {"projections": "full"}) for name in AHN},
    "low-rank": ("gated_deltanet", {"write_scope": "evicted", "projections": "lowrank"}),
    "convolved": ("gated_deltanet", {"write_scope": "evicted"}),
    "kda": ("kda", {"write_scope": "evicted"}),
    "gla": ("gla", {"write_scope": "evicted"}),
    "mamba2": ("mamba2", {"write_scope": "evicted"}),
    "lizard": ("lizard", {"write_scope": "evicted"}),
}


def evicted(name: str, dtype: torch.dtype, **options: Any) -> tuple[EvictedMixer, MatrixMixer]:
    """A memory behind the window, and what it stands around, which writes what it reads."""
    mixer = small_memory(name, **options).to(dtype)
    randomise(mixer)
    assert isinstance(mixer, EvictedMixer)
    assert isinstance(mixer.memory, MatrixMixer)
    return mixer, mixer.memory


@pytest.mark.parametrize("length", [1, W, W + 1, W + S, W + S + 1, W + S + 3, 29])
@pytest.mark.parametrize(("name", "options"), CASES.values(), ids=CASES.keys())
@torch.no_grad()
def test_it_holds_what_the_memory_holds_that_read_only_what_left(
    name: str, options: dict[str, Any], length: int
) -> None:
    """After token t = length - 1 it has written the tokens S to t - W, in float64 to 1e-12."""
    mixer, memory = evicted(name, torch.float64, **options)
    x = torch.randn(2, length, HIDDEN, dtype=torch.float64)
    _, state = mixer(x, mixer.init_state(2, x.dtype, CPU), Layout.dense(0, 2, length, CPU))
    left = x[:, S : max(length - W, S)]
    alone = memory.init_state(2, x.dtype, CPU)
    if left.shape[1]:
        _, alone = memory(left, alone, Layout.dense(0, 2, left.shape[1], CPU))
    assert isinstance(state.memory, MatrixState)
    assert bool(alone.matrix.any()) == (length > W + S)
    torch.testing.assert_close(state.memory.matrix, alone.matrix, rtol=0, atol=1e-12)
    for part in alone.tails.keys() - {"q"}:
        written, expected = state.memory.tails[part], alone.tails[part]
        torch.testing.assert_close(written, expected, rtol=0, atol=1e-12)


def split(x: Tensor, heads: int) -> Tensor:
    """[R, N, H d] to [R, N, H, d]."""
    return x.unflatten(-1, (heads, -1))


def as_ahn_does(memory: MatrixMixer, x: Tensor, features: Features | None) -> Tensor:
    """The queries from W + S on, with the keys, values and rates of the tokens from S on beside
    them, as many of both (``mem_q``, ``mem_k``, ``mem_v`` and ``mem_h_ab`` of its decoder layer);
    nothing before."""
    projections, heads = memory.shell.projections, memory.shell.heads
    leaving, reading = x[:, S:-W], x[:, W + S :]
    q = projections.q(reading)
    if features is None:
        k, v = projections.k(leaving), projections.v(leaving)
    else:
        q = q + projections.lay_q(features.q[:, W + S :])
        k, v = features.k[:, S:-W], features.v[:, S:-W]
        k, v = projections.k(k) + projections.lay_k(k), projections.v(v) + projections.lay_v(v)
    q, k = (F.normalize(split(t, heads), dim=-1) for t in (q, k))
    v = split(v, heads)
    if isinstance(memory, DeltaMixer):
        rate = memory.rate(leaving).sigmoid()
        decay = torch.zeros_like(rate)
        if memory.forgets == "head":
            decay = -memory.log_speed.exp() * F.softplus(memory.decay(leaving))
        run = naive("gated_delta_rule").naive_recurrent_gated_delta_rule
        read, _ = run(q, k, v, rate, decay)
    else:
        assert isinstance(memory, Mamba2Mixer)
        step = F.softplus(memory.step(leaving))
        run = naive("simple_gla").naive_recurrent_simple_gla
        decay = -memory.log_speed.exp() * step
        read, _ = run(q, k * step[..., None], v, decay, scale=1.0)
    read = F.rms_norm(read, read.shape[-1:], eps=1e-6) * memory.shell.o_norm.weight
    read = read.flatten(2) * F.silu(projections.gate(reading))
    y = projections.o(read)
    if features is not None:
        y = y + F.linear(projections.spread(read), features.output)
    return F.pad(y, (0, 0, W + S, 0))


def read_beside(attention: WindowMixer, mixer: EvictedMixer, x: Tensor, parts: list[int]) -> Tensor:
    """What a memory says beside an attention that reads the same parts of a text."""
    rows = x.shape[0]
    ring, state = (m.init_state(rows, x.dtype, CPU) for m in (attention, mixer))
    done, said = 0, []
    for count in parts:
        layout = Layout.dense(done, rows, count, CPU)
        now = x[:, done : done + count]
        _, ring, features = attention.attend(now, ring, layout, mixer.wants)
        y, state = mixer(now, state, layout, features)
        said.append(y)
        done += count
    return torch.cat(said, 1)


@pytest.mark.parametrize("parts", [[40], [1] * 40, [3, 20, 17]], ids=["prefill", "decode", "parts"])
@pytest.mark.parametrize("projections", ["shared", "lowrank", "full"])
@pytest.mark.parametrize("name", AHN)
@torch.no_grad()
def test_it_says_what_ahn_says(name: str, projections: str, parts: list[int]) -> None:
    """To 1e-4 in fp32, in which the rules of flash-linear-attention compute.

    But for the order of norm and gate in AHN-Mamba2, the size of gate and output projection, and
    positions: what is shared is not rotated.
    """
    mixer, memory = evicted(name, torch.float32, projections=projections)
    attention = attention_mixer(WindowMixer, WINDOW)
    assert isinstance(attention, WindowMixer)
    x = torch.randn(2, 40, HIDDEN)
    features = None
    if projections == "shared":
        assert mixer.wants == Wanted.LEAVING
        start = attention.init_state(2, x.dtype, CPU)
        layout = Layout.dense(0, 2, 40, CPU)
        features = attention.attend(x, start, layout, Wanted.FEATURES)[2]
    expected = as_ahn_does(memory, x, features)
    assert 0.3 < float(expected.abs().max()) < 8
    got = read_beside(attention, mixer, x, parts)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


def test_the_presets_share_the_attention_s_projections() -> None:
    for name in AHN:
        mixer, memory = evicted(name, torch.float32)
        assert memory.shell.projections.kind == "shared"
        assert mixer.wants == Wanted.LEAVING


NARROW: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {"rank": 2}) for name in AHN},
    **{
        f"{name}-{kind}": (
            name,
            {"write_scope": "evicted", "projections": kind, "rank": 2, "decay_rank": 2},
        )
        for name in ("gated_deltanet", "kda", "gla", "lizard")
        for kind in ("shared", "lowrank")
    },
    "mesa": ("mesa", {"write_scope": "evicted", "projections": "shared", "rank": 2}),
    "titans": ("titans", {"write_scope": "evicted", "projections": "lowrank", "rank": 2}),
    "ttt": ("ttt_linear", {"write_scope": "evicted", "projections": "shared", "rank": 2}),
    "allmem": (
        "allmem",
        {"write_scope": "evicted", "projections": "lowrank", "rank": 2, "chunk": 4},
    ),
}
"""Of which less than the hidden states waits."""
NOT_MATRICES = {
    "titans": {"width": 7},
    "ttt_linear": {},
    "allmem": {"heads": 2, "head_dim": 6, "width": 7},
}


def narrow_memory(name: str, options: dict[str, Any]) -> EvictedMixer:
    """One that keeps little of a token that waits."""
    if name in NOT_MATRICES:
        torch.manual_seed(1)
        kind = memory_kind(name)
        assert kind is not None
        own = {"key_dim": 6, **NOT_MATRICES[name]} if name != "allmem" else NOT_MATRICES[name]
        mixer = kind.make(HIDDEN, kind.options({**own, **options}), ATTENTION, WINDOW)
    else:
        mixer = small_memory(name, **options)
    assert isinstance(mixer, EvictedMixer)
    mixer.double()
    randomise(mixer)
    return mixer


@pytest.mark.parametrize(("name", "options"), NARROW.values(), ids=NARROW.keys())
def test_what_is_kept_of_waiting_tokens_is_enough(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs and gradients are those of whole hidden states that wait, to 1e-10 in float64."""
    mixer = narrow_memory(name, options)
    attention = attention_mixer(WindowMixer, WINDOW).double()
    assert isinstance(attention, WindowMixer)
    x = torch.randn(2, 33, HIDDEN, dtype=torch.float64, requires_grad=True)
    leaves = [x, *mixer.parameters()]

    def found() -> tuple[int, list[Tensor]]:
        line = mixer.init_state(2, x.dtype, CPU).line
        y = read_beside(attention, mixer, x, [1, 14, 18])
        return line.shape[-1], [y, *torch.autograd.grad(y.square().sum(), leaves)]

    size, narrow = found()
    monkeypatch.setattr(mixer.memory, "narrowings", list)
    whole_size, whole = found()
    assert size < whole_size == HIDDEN
    for got, expected in zip(narrow, whole, strict=True):
        assert bool(expected.abs().max() > 0)
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


class TestBesideAnAttention(MixerConformance):
    """The contract beside the attention whose lost keys and values are written."""

    hidden_size = HIDDEN
    window = WINDOW
    attention = ATTENTION

    @pytest.fixture(
        autouse=True,
        params=[
            *((name, {}) for name in AHN),
            ("gated_deltanet", {"write_scope": "evicted", "projections": "shared", "rank": 5}),
            ("gla", {"write_scope": "evicted", "projections": "shared", "rank": 2}),
        ],
        ids=[*AHN, "convolved", "gla"],
    )
    def choose(self, request: pytest.FixtureRequest) -> None:
        self.name, self.options = request.param

    def make_mixer(self) -> Mixer:
        return small_memory(self.name, **self.options)


def test_it_has_to_stand_beside_a_window() -> None:
    memory = small_memory("ahn_deltanet")
    layer = LayerMixer(attention_mixer(FullMixer), memory)
    x = torch.randn(1, 3, HIDDEN)
    layout = Layout.dense(0, 1, 3, CPU)
    with pytest.raises(AllMemError, match="FullMixer has no window"):
        layer(x, layer.init_state(1, x.dtype, CPU), layout)
    with pytest.raises(AllMemError, match="has to stand beside one"):
        memory(x, memory.init_state(1, x.dtype, CPU), layout)


# Models


@torch.no_grad()
def randomise_memories(model: AllMemForCausalLM) -> None:
    generator = torch.Generator().manual_seed(5)
    for parameter in model.memory_parameters().values():
        noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        parameter.add_(0.2 * noise)


@pytest.mark.parametrize("name", ["qwen3", "qwen2", "phi3", "smollm3", "gemma3", "qwen3-yarn"])
def test_a_converted_model_writes_what_its_window_loses(name: str, tmp_path: Path) -> None:
    """q and k norms, biases, fused projections, partial RoPE; padding, splits and a saved state."""
    model = allmem.convert(base_model(name), window=MODEL_WINDOW, sinks=3, mixers=AHN[1])
    randomise_memories(model)
    ids = text(2, 40)
    whole = logits(model, ids)
    fewer = copy.deepcopy(model)
    for mixed in fewer.mixers():
        if mixed.memory is not None:
            mixed.alpha.data.zero_()
    assert float((whole - logits(fewer, ids))[:, MODEL_WINDOW + 4 :].abs().max()) > 1e-3
    mask = torch.ones(2, 45, dtype=torch.int64)
    mask[:, :5] = 0
    padded = logits(model, F.pad(ids, (5, 0)), attention_mask=mask)
    # Norms of these models compute in fp32.
    torch.testing.assert_close(padded[:, 5:], whole, rtol=0, atol=2e-5)
    cache = read(model, ids[:, :21])
    cache.save(tmp_path / "state.safetensors", model)
    cache = AllMemCache.load(tmp_path / "state.safetensors", model)
    for at in range(21, 40):
        one = logits(model, ids[:, at : at + 1], past_key_values=cache)
        torch.testing.assert_close(one, whole[:, at : at + 1], rtol=0, atol=2e-5)


def test_it_is_read_with_another_window() -> None:
    base = base_model("qwen3")
    model = allmem.convert(copy.deepcopy(base), window=12, sinks=3, mixers=AHN[0])
    narrow = allmem.convert(base, window=5, sinks=2, mixers=AHN[0])
    randomise_memories(model)
    narrow.load_state_dict(model.state_dict())
    ids = text(1, 40)
    cache = AllMemCache(model.config, WindowConfig(window=5, sinks=2))
    got = logits(model, ids, past_key_values=cache)
    torch.testing.assert_close(got, logits(narrow, ids), rtol=0, atol=1e-8)


def test_layers_can_be_matched_and_gradients_reach_all_weights() -> None:
    model = allmem.convert(base_model(), window=MODEL_WINDOW, sinks=3, mixers=AHN[1])
    model.freeze_base()
    randomise_memories(model)
    ids = text(1, 40)
    batch = {"input_ids": ids, "position_ids": torch.arange(40)[None]}
    counts = torch.ones(1, 39, dtype=torch.bool)
    matched = match_layers(model, batch, counts, AllMemCache(model.config))
    assert set(matched.layers) == {0, 1}
    model(input_ids=ids, labels=ids).loss.backward()
    for parameter in model.memory_parameters().values():
        assert parameter.grad is not None
        assert bool(parameter.grad.any())
