"""The three ways in which a memory meets the attention of its layer."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from allmem.config import WindowConfig
from allmem.distill.matching import matching_loss
from allmem.errors import AllMemError
from allmem.layout import Layout
from allmem.mixers.attention import FullMixer, WindowMixer
from allmem.mixers.base import Mixer
from allmem.mixers.conformance import MixerConformance, randomise
from allmem.mixers.layer import LayerMixer
from allmem.mixers.registry import memory_kind
from allmem.models.structure import attention_weights
from tests.mixers.test_conformance import attention_mixer

HIDDEN = 24
WINDOW = WindowConfig(window=7, sinks=2)
SIZES: dict[str, Any] = {"key_dim": 6, "rank": 3}
CPU = torch.device("cpu")

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "stack": ("titans", {"fusion": "stack", "width": 7, "mini_batch": 5}),
    "stack-evicted": (
        "titans",
        {"fusion": "stack", "width": 7, "mini_batch": 5, "write_scope": "evicted"},
    ),
    "context": ("titans", {"fusion": "context", "width": 7, "mini_batch": 5}),
    "context-evicted": (
        "titans",
        {"fusion": "context", "width": 7, "mini_batch": 5, "write_scope": "evicted"},
    ),
    "context-of-a-linear-memory": ("gated_deltanet", {"fusion": "context", "block": 5}),
    "context-and-shared-projections": (
        "gated_deltanet",
        {"fusion": "context", "block": 5, "projections": "shared"},
    ),
}


def layer(name: str, **options: Any) -> LayerMixer:
    """A window attention and a memory, as conversion puts them together."""
    attention = attention_mixer(WindowMixer, WINDOW)
    torch.manual_seed(1)
    kind = memory_kind(name)
    assert kind is not None
    weights = attention_weights(attention.core, attention.shape)
    known = {field.name for field in dataclasses.fields(kind.config)}
    sizes = {name: size for name, size in SIZES.items() if name in known}
    chosen = kind.options({**sizes, **options})
    return LayerMixer(attention, kind.make(HIDDEN, chosen, weights, WINDOW))


class TestFusion(MixerConformance):
    """A layer is a mixer, however its memory is fused."""

    hidden_size = HIDDEN
    counts_flops = False
    name: str
    options: dict[str, Any]

    @pytest.fixture(autouse=True, params=CASES.values(), ids=CASES.keys())
    def choose(self, request: pytest.FixtureRequest) -> None:
        self.name, self.options = request.param

    def make_mixer(self) -> Mixer:
        return layer(self.name, **self.options)


def random_layer(**options: Any) -> LayerMixer:
    made = layer("titans", width=7, mini_batch=5, **options).double()
    randomise(made)
    return made


def read(mixer: Mixer, x: Tensor) -> Tensor:
    rows, slots = x.shape[:2]
    y, _ = mixer(x, mixer.init_state(rows, x.dtype, CPU), Layout.dense(0, rows, slots, CPU))
    return y


def inputs() -> Tensor:
    return torch.randn(2, 31, HIDDEN, dtype=torch.float64)


@pytest.mark.parametrize("fusion", ["gate", "stack", "context"])
@torch.no_grad()
def test_a_silent_memory_leaves_the_attention_alone(fusion: str) -> None:
    made, x = random_layer(fusion=fusion), inputs()
    speaking = read(made, x)
    made.alpha.zero_()
    assert torch.equal(read(made, x), read(made.attention, x))
    assert not torch.allclose(speaking, read(made.attention, x), atol=1e-3)


@torch.no_grad()
def test_stack_is_attention_of_what_the_memory_added() -> None:
    made, x = random_layer(fusion="stack"), inputs()
    assert made.memory is not None
    want = read(made.attention, x + made.alpha * read(made.memory, x))
    torch.testing.assert_close(read(made, x), want, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_context_is_attention_with_the_reads_among_its_keys() -> None:
    """By definition, query by query: one softmax over the visible tokens and their reads."""
    made, x = random_layer(fusion="context"), inputs()
    assert made.memory is not None
    attention = made.attention
    reads, plain = read(made.memory, x), read(attention, x)
    core: Any = attention.core
    rotary, shape = attention.rotary, attention.shape
    assert rotary is not None
    group = shape.query_heads // shape.kv_heads

    def heads(z: Tensor) -> Tensor:
        return z.unflatten(-1, (-1, shape.head_dim))

    def turned(z: Tensor, position: int) -> Tensor:
        """z [..., heads, E] at a position."""
        cos, sin = rotary.table(torch.tensor(position), z.dtype)
        first, second = z.chunk(2, -1)
        return z * cos + torch.cat([-second, first], -1) * sin

    W, S = WINDOW.window, WINDOW.sinks
    want = torch.empty_like(x)
    for t in range(x.shape[1]):
        query = heads(core.q_proj(x[:, t]))
        scores, values = [], []
        for j in range(t + 1):
            if t - j >= W and j >= S:
                continue
            # A sink is seen as if it stood just before the window.
            q = turned(query, min(t, S + W - 1) if j < S else t)
            for source in (x[:, j], reads[:, j]):
                k = turned(heads(core.k_proj(source)), j).repeat_interleave(group, 1)
                scores.append((q * k).sum(-1) * shape.head_dim**-0.5)
                values.append(heads(core.v_proj(source)).repeat_interleave(group, 1))
        weights = torch.stack(scores).softmax(0)[..., None]
        seen = core.o_proj((weights * torch.stack(values)).sum(0).flatten(1))
        want[:, t] = plain[:, t] + made.alpha * (seen - plain[:, t])
    torch.testing.assert_close(read(made, x), want, rtol=1e-8, atol=1e-8)


def test_context_needs_a_window() -> None:
    made = layer("titans", fusion="context")
    with pytest.raises(AllMemError, match="fusion = 'context'"):
        LayerMixer(attention_mixer(FullMixer), made.memory)


def test_stack_cannot_share_projections() -> None:
    with pytest.raises(AllMemError, match="shared"):
        layer("titans", fusion="stack", projections="shared")


def test_an_unknown_fusion_is_refused() -> None:
    with pytest.raises(AllMemError, match="context"):
        layer("titans", fusion="contxt")


@pytest.mark.parametrize("fusion", ["gate", "stack", "context"])
def test_matching_compares_the_layer_with_full_attention(fusion: str) -> None:
    """The stage of distillation that trains each layer by itself, for every fusion."""
    made, x = random_layer(fusion=fusion), inputs()
    full = read(attention_mixer(FullMixer).double(), x)
    layout = Layout.dense(0, *x.shape[:2], CPU)
    counts = torch.arange(31)[None] % 3 != torch.arange(2)[:, None]
    loss = matching_loss(made, x, full, layout, counts)  # type: ignore[arg-type]
    missed = (full - read(made, x))[counts].square().sum()
    lost = (full - read(made.attention, x))[counts].square().sum()
    torch.testing.assert_close(loss, missed / lost)
    for name, parameter in made.slow_parameters().items():
        (gradient,) = torch.autograd.grad(loss, parameter, retain_graph=True)
        assert bool(gradient.any()), name
