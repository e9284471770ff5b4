"""Token modes in the softmax of the window: the contract, the definition, and models that need no
training."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, PreTrainedModel, SmolLM3Config

import allmem
from allmem.config import WindowConfig
from allmem.distill.matching import match_layers
from allmem.errors import AllMemError
from allmem.layout import Layout
from allmem.memory.projections import AttentionWeights, Beside, Features, Leaving
from allmem.mixers import camelot
from allmem.mixers.attention import FullMixer, WindowMixer
from allmem.mixers.base import Mixer
from allmem.mixers.camelot import CamelotMixer, CamelotOptions
from allmem.mixers.conformance import MixerConformance, randomise
from allmem.mixers.layer import LayerMixer
from allmem.mixers.modes import Modes
from allmem.mixers.registry import memory_kind
from allmem.models.cache import AllMemCache
from tests.mixers.test_conformance import HIDDEN, attention_mixer
from tests.models.tiny import SHAPE, W, base_model, logits, text

CPU = torch.device("cpu")
ATTENTION = AttentionWeights(query_heads=4, kv_heads=2, head_dim=8)
WINDOW = WindowConfig(window=5, sinks=2)
# A threshold at which about half of the random tokens join a mode.
SMALL: dict[str, Any] = {"slots": 6, "threshold": 0.4}
CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "modes-weigh-as-their-tokens": {"weigh": "token"},
    "the-nearest-modes": {"top": 2},
    "none-joins": {"threshold": 1},
    "nearly-all-join": {"threshold": 0.01},
    "one-slot": {"slots": 1},
    "many-slots": {"slots": 60},
}


def memory(**options: Any) -> CamelotMixer:
    kind = memory_kind("camelot")
    assert kind is not None
    made = kind.make(HIDDEN, kind.options({**SMALL, **options}), ATTENTION, WINDOW)
    assert isinstance(made, CamelotMixer)
    return made


def layer(window: WindowConfig = WINDOW, **options: Any) -> LayerMixer:
    return LayerMixer(attention_mixer(WindowMixer, window), memory(**options))


class TestCamelot(MixerConformance):
    """The contract, with every option, beside the window whose softmax it joins."""

    hidden_size = HIDDEN
    counts_flops = False
    options: dict[str, Any]

    @pytest.fixture(autouse=True, params=CASES.values(), ids=CASES.keys())
    def choose(self, request: pytest.FixtureRequest) -> None:
        self.options = request.param

    def make_mixer(self) -> Mixer:
        return layer(**self.options)


class TestWithoutSinks(MixerConformance):
    """The same where no token is kept from the modes."""

    hidden_size = HIDDEN
    counts_flops = False

    def make_mixer(self) -> Mixer:
        return layer(WindowConfig(4))


# The definition


def rotated(x: Tensor, position: int) -> Tensor:
    """RoPE of a Llama, theta 10000: x [8] at a position."""
    # transformers makes the frequencies in fp32.
    frequencies = 1 / 10000.0 ** (torch.arange(0, 8, 2).float() / 8)
    angles = position * frequencies.double()
    first, second = x[:4], x[4:]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin])


def definition(mixer: LayerMixer, x: Tensor, window: WindowConfig) -> tuple[Tensor, list[Any]]:
    """y [N, D] of one document x [N, D], and the modes that are left, one list for each KV head of
    [key, value, tokens, when]: one softmax over window, sinks and modes, with lists and loops."""
    assert isinstance(mixer.memory, CamelotMixer)
    core, options = mixer.attention.core, mixer.memory.options
    q = (x @ core.q_proj.weight.T).view(-1, 4, 8)
    k, v = ((x @ p.weight.T).view(-1, 2, 8) for p in (core.k_proj, core.v_proj))
    modes: list[list[list[Any]]] = [[], []]
    outputs = []
    for t in range(len(x)):
        gone = t - window.window
        for h in range(2 if gone >= window.sinks else 0):
            key, value = k[gone, h], v[gone, h]
            near = [float(m[0] @ key / m[0].norm() / key.norm()) for m in modes[h]]
            if near and max(near) > options.threshold and options.threshold < 1:
                mode = modes[h][near.index(max(near))]
                count = mode[2]
                mode[:] = [
                    (count * mode[0] + key) / (count + 1),
                    (count * mode[1] + value) / (count + 1),
                    count + 1,
                    t,
                ]
            else:
                if len(modes[h]) == options.slots:
                    modes[h].pop(min(range(len(modes[h])), key=lambda i: modes[h][i][3]))
                modes[h].append([key, value, 1, t])
        heads = []
        for head in range(4):
            h, query = head // 2, q[t, head]
            far = rotated(query, min(t, window.sinks + window.window - 1))
            scores, values = [], []
            for j in range(t + 1):
                if t - j < window.window:
                    scores.append(rotated(query, t) @ rotated(k[j, h], j) / 8**0.5)
                elif j < window.sinks:
                    scores.append(far @ rotated(k[j, h], j) / 8**0.5)
                else:
                    continue
                values.append(v[j, h])
            found = []
            for mode in modes[h]:
                score = far @ mode[0] / 8**0.5
                if options.weigh == "token":
                    score = score + math.log(mode[2])
                found.append((score, mode[1]))
            found.sort(key=lambda pair: -float(pair[0]))
            for score, value in found[: options.top]:
                scores.append(score)
                values.append(value)
            weights = torch.stack(scores).exp()
            heads.append(weights @ torch.stack(values) / weights.sum())
        outputs.append(torch.cat(heads) @ core.o_proj.weight.T)
    return torch.stack(outputs), modes


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("sinks", [0, 2])
@torch.no_grad()
def test_attention_and_memory_are_one_softmax(case: str, sinks: int) -> None:
    """float64, 1e-10, read at once and token by token: at alpha = 1, where the layer starts."""
    window = WindowConfig(5, sinks)
    mixer = layer(window, **CASES[case]).double()
    assert mixer.alpha.tolist() == [1.0] * HIDDEN
    randomise(mixer)
    mixer.alpha.fill_(1)
    x = torch.randn(1, 40, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    expected, modes = definition(mixer, x[0], window)
    whole, state = mixer(x, mixer.init_state(1, x.dtype, CPU), Layout.dense(0, 1, 40, CPU))
    assert torch.allclose(whole[0], expected, rtol=0, atol=1e-10)
    assert isinstance(state.memory, Modes)
    for h in range(2):
        # The same modes, whatever slots they are in.
        order = state.memory.used[0, h].argsort(descending=True)[: len(modes[h])]
        expected_modes = sorted(modes[h], key=lambda m: -m[3])
        assert state.memory.counts[0, h, order].tolist() == [m[2] for m in expected_modes]
        assert state.memory.used[0, h, order].tolist() == [m[3] for m in expected_modes]
        means = torch.stack([torch.cat(m[:2]) for m in expected_modes])
        assert torch.allclose(state.memory.means[0, h, order], means, rtol=0, atol=1e-12)
    pieces, state = [], mixer.init_state(1, x.dtype, CPU)
    for t in range(40):
        y, state = mixer(x[:, t : t + 1], state, Layout.dense(t, 1, 1, CPU))
        pieces.append(y)
    assert torch.allclose(torch.cat(pieces, 1)[0], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("splits", [[47], [1] * 47, [20, 20, 7], [3] * 15 + [2]], ids=str)
@pytest.mark.parametrize("block", [1, 7, 64], ids="B{}".format)
@torch.no_grad()
def test_the_same_tokens_join_however_a_text_is_split(splits: list[int], block: int) -> None:
    """Which token joined which mode, and when, bit for bit; rows beside others and alone."""
    mixer = layer().double()
    randomise(mixer)
    x = torch.randn(3, 47, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    expected, chosen = mixer(x, mixer.init_state(3, x.dtype, CPU), Layout.dense(0, 3, 47, CPU))
    assert int(chosen.memory.counts.max()) > 2
    with mock.patch.object(camelot, "BLOCK", block):
        for rows in ([0, 1, 2], [1]):
            part = x[rows]
            state, done = mixer.init_state(len(rows), x.dtype, CPU), 0
            for count in splits:
                now = Layout.dense(done, len(rows), count, CPU)
                y, state = mixer(part[:, done : done + count], state, now)
                assert torch.allclose(y, expected[rows, done : done + count], rtol=0, atol=1e-10)
                done += count
            for name in ("counts", "used"):
                assert torch.equal(getattr(state.memory, name), getattr(chosen.memory, name)[rows])


@pytest.mark.parametrize("block", [5, 64], ids="B{}".format)
def test_gradients_do_not_depend_on_the_blocks(block: int) -> None:
    mixer = layer().double()
    randomise(mixer)
    x = torch.randn(1, 33, HIDDEN, dtype=torch.float64, requires_grad=True)
    found = []
    for size in (1, block):
        with mock.patch.object(camelot, "BLOCK", size):
            y, _ = mixer(x, mixer.init_state(1, x.dtype, CPU), Layout.dense(0, 1, 33, CPU))
        found.append(torch.autograd.grad(y.square().sum(), x)[0])
    assert torch.allclose(found[0], found[1], rtol=0, atol=1e-10)
    # Through the modes: no window is that long.
    y, _ = mixer(x, mixer.init_state(1, x.dtype, CPU), Layout.dense(0, 1, 33, CPU))
    (gradient,) = torch.autograd.grad(y[:, -1].sum(), x)
    assert bool(gradient[0, WINDOW.sinks : 33 - WINDOW.window].any())


@torch.no_grad()
def test_equal_keys_do_not_join_at_a_threshold_of_one() -> None:
    """In fp32 the cosine of a key with itself is rounded to more than one as often as to less."""
    mixer = layer(threshold=1, slots=30).float()
    x = torch.randn(1, 1, HIDDEN).expand(1, 30, HIDDEN)
    _, state = mixer(x, mixer.init_state(1, x.dtype, CPU), Layout.dense(0, 1, 30, CPU))
    assert int(state.memory.counts.max()) == 1
    joined = layer(threshold=0.99, slots=30).float()
    _, state = joined(x, joined.init_state(1, x.dtype, CPU), Layout.dense(0, 1, 30, CPU))
    assert sorted(set(state.memory.counts.flatten().tolist())) == [0, 30 - 5 - 2]


@torch.no_grad()
def test_what_was_learned_is_carried_into_another_text() -> None:
    """Modes stay in their order of age, and all are older than what the other text writes."""
    mixer = layer(threshold=1).double()
    x = torch.randn(1, 20, HIDDEN, dtype=torch.float64)
    _, learned = mixer(x, mixer.init_state(1, x.dtype, CPU), Layout.dense(0, 1, 20, CPU))
    new = mixer.memory.init_state(1, x.dtype, CPU)
    carried = mixer.memory.carry(learned.memory, new)
    assert torch.equal(carried.means, learned.memory.means)
    assert torch.equal(carried.used.argsort(-1), learned.memory.used.argsort(-1))
    assert int(carried.used.max()) < 0
    state = mixer.init_state(1, x.dtype, CPU)
    before, state.memory = carried.means.clone(), carried
    oldest = carried.used.argmin(-1)[0]
    _, state = mixer(x[:, :8], state, Layout.dense(0, 1, 8, CPU))
    changed = (state.memory.means != before).any(-1)[0]
    # One token has left the window of 5 that is not one of 2 sinks.
    assert changed.nonzero().tolist() == [[0, int(oldest[0])], [1, int(oldest[1])]]


def test_flops_are_what_torch_counts() -> None:
    mixer = memory(slots=600).double()
    x = torch.randn(1, 24, HIDDEN, dtype=torch.float64)
    heads, kv = torch.randn(1, 4, 24, 8).double(), torch.randn(1, 2, 24, 8).double()
    beside = Beside(heads, heads[..., 0], heads)
    leaving = Leaving(kv, kv, torch.ones(1, 24, dtype=torch.bool))
    output = torch.randn(HIDDEN, 32).double()
    features = Features(x, x, x, output, leaving, beside)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        mixer(x, mixer.init_state(1, x.dtype, CPU), Layout.dense(0, 1, 24, CPU), features)
    assert counter.get_total_flops() == pytest.approx(mixer.flops(24), rel=0.05)


def test_it_promises_nothing_to_train() -> None:
    mixer = layer()
    assert not mixer.memory.capabilities.trainable
    assert [name for name, _ in mixer.named_parameters() if "core" not in name] == ["alpha"]


# Models


def model_without_positions() -> PreTrainedModel:
    torch.manual_seed(0)
    config = SmolLM3Config(**SHAPE, no_rope_layers=[0, 0], use_sliding_window=False)
    return AutoModelForCausalLM.from_config(config).double().eval()


@pytest.mark.parametrize("weigh", ["mode", "token"])
def test_without_positions_enough_modes_are_full_attention(weigh: str) -> None:
    """Where distances do not count, a token that the window lost is seen as if it were there."""
    base = model_without_positions()
    ids = text(1, 50)
    with torch.no_grad():
        expected = base(ids).logits
    options = {"slots": 50, "threshold": 1, "weigh": weigh}
    converted = allmem.convert(
        base, window=8, sinks=2, mixers="camelot", mixer_options={"camelot": options}
    )
    assert torch.allclose(logits(converted, ids), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["qwen3", "qwen2", "phi3", "smollm3", "gemma3", "qwen3-yarn"])
def test_a_converted_model_remembers_without_training(name: str, tmp_path: Path) -> None:
    """q and k norms, biases, fused projections, partial RoPE: the memory takes what the attention
    made of a token. Within the window nothing changes."""
    base = base_model(name)
    ids = text(2, 40)
    windowed = allmem.convert(copy.deepcopy(base), window=W, sinks=3, mixers="window")
    model = allmem.convert(base, window=W, sinks=3, mixers="camelot")
    expected, got = logits(windowed, ids), logits(model, ids)
    assert torch.allclose(got[:, :W], expected[:, :W], rtol=0, atol=1e-8)
    assert float((got - expected)[:, W + 4 :].abs().max()) > 1e-6
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=base.dtype)
    assert torch.allclose(logits(again, ids), got, rtol=0, atol=1e-8)


def test_it_can_stand_among_layers_that_are_trained() -> None:
    """Its alpha is matched like any layer's, and gradients pass through it to layers below."""
    model = allmem.convert(base_model(), window=W, sinks=3, chunk=5, mixers="allmem,camelot")
    model.freeze_base()
    ids = text(1, 40)
    batch = {"input_ids": ids, "position_ids": torch.arange(40)[None]}
    counts = torch.ones(1, 39, dtype=torch.bool)
    matched = match_layers(model, batch, counts, AllMemCache(model.config))
    assert set(matched.layers) == {0, 1}
    model(input_ids=ids, labels=ids).loss.backward()
    alphas = [p.grad for name, p in model.memory_parameters().items() if name.endswith("alpha")]
    assert all(grad is not None and bool(grad.any()) for grad in alphas)


def test_bad_options_and_places_are_refused() -> None:
    with pytest.raises(AllMemError, match=r"threshold = 1\.5 must be a cosine"):
        CamelotOptions(threshold=1.5)
    with pytest.raises(AllMemError, match="slots = 0"):
        CamelotOptions(slots=0)
    with pytest.raises(AllMemError, match="top = 0"):
        CamelotOptions(top=0)
    with pytest.raises(AllMemError, match=r"weigh.*'tokens'.*token"):
        CamelotOptions(weigh="tokens")  # type: ignore[arg-type]
    alone, x = memory(), torch.randn(1, 3, HIDDEN)
    with pytest.raises(AllMemError, match="has to stand beside one"):
        alone(x, alone.init_state(1, x.dtype, CPU), Layout.dense(0, 1, 3, CPU))
    beside_full = LayerMixer(attention_mixer(FullMixer), memory())
    with pytest.raises(AllMemError, match="FullMixer has no window"):
        beside_full(x, beside_full.init_state(1, x.dtype, CPU), Layout.dense(0, 1, 3, CPU))
