"""The project's own mixers against the conformance suite, and the suite against broken mixers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from allmem.config import MemoryConfig, WindowConfig
from allmem.layout import Layout
from allmem.memory.projections import AttentionWeights
from allmem.mixers.allmem import AllMemMixer
from allmem.mixers.attention import AttentionMixer, AttentionShape, FullMixer, WindowMixer
from allmem.mixers.base import Mixer
from allmem.mixers.conformance import MixerConformance, check_conformance
from allmem.mixers.layer import LayerMixer
from allmem.models.layer import route_attention
from allmem.models.structure import attention_shape, attention_weights, layer_rotary

HIDDEN = 24
WINDOW = WindowConfig(window=7, sinks=2)


def tiny_base() -> PreTrainedModel:
    """A base model of one layer: 4 query heads and 2 KV heads of 8 on a hidden size of 24.

    A Llama, since it computes nothing in fp32 inside: finite differences need float64 throughout.
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=17,
        hidden_size=HIDDEN,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    model.requires_grad_(False)
    route_attention(model)
    return model


def attention_mixer(kind: type[AttentionMixer], *args: Any) -> AttentionMixer:
    model = tiny_base()
    core = model.base_model.layers[0].self_attn
    rotary = layer_rotary(model, core, 0, WINDOW)
    return kind(core, attention_shape(model.config), rotary, *args)


def memory_mixer(**options: Any) -> AllMemMixer:
    torch.manual_seed(1)
    config = MemoryConfig.from_dict({"chunk": 5, "rank": 3, **options})
    return AllMemMixer(HIDDEN, config, AttentionWeights(query_heads=4, kv_heads=2, head_dim=8))


def layer_mixer(**options: Any) -> LayerMixer:
    attention = attention_mixer(WindowMixer, WINDOW)
    torch.manual_seed(1)
    config = MemoryConfig.from_dict({"chunk": 5, "rank": 3, **options})
    return LayerMixer(
        attention, AllMemMixer(HIDDEN, config, attention_weights(attention.core, attention.shape))
    )


MEMORIES: dict[str, dict[str, Any]] = {
    "default": {},
    "wide": {"width": 30, "heads": 3},
    "sized-otherwise": {"heads": 1, "head_dim": 10, "width": 7},
    "all-matrices-normalised": {"norm_matrices": ["gate", "up", "down"]},
    "post-update": {"norm": "post_update"},
    "no-norm": {"norm": "none"},
    "dot": {"loss": "dot"},
    "no-residual": {"residual": False},
    "linear": {"network": "linear"},
    "no-momentum": {"momentum": False},
    "no-clip": {"clip": None},
    "low-rank": {"projections": "lowrank"},
    "no-convolution": {"conv": 0},
    "one-tap": {"conv": 1},
    "no-gate": {"gate": False},
    "values-not-normalised": {"normalize_values": False},
    "read-not-normalised": {"output_norm": False},
    "features-not-activated": {"feature_activation": False},
    "chunk-of-one": {"chunk": 1},
    "muon": {"optimizer": "muon"},
    "keys-of-length-one": {"qk_norm": "l2"},
    "keys-not-normalised": {"qk_norm": "none"},
    "values-activated": {"value_activation": True},
}


class TestAllMem(MixerConformance):
    """The memory with every option."""

    hidden_size = HIDDEN
    options: dict[str, Any]

    @pytest.fixture(autouse=True, params=MEMORIES.values(), ids=MEMORIES.keys())
    def choose(self, request: pytest.FixtureRequest) -> None:
        self.options = request.param

    def make_mixer(self) -> Mixer:
        return memory_mixer(**self.options)


class TestWindow(MixerConformance):
    """Window and sinks around a pretrained attention."""

    hidden_size = HIDDEN
    counts_flops = False

    def make_mixer(self) -> Mixer:
        return attention_mixer(WindowMixer, WINDOW)


class TestWindowWithoutSinks(TestWindow):
    """The window alone."""

    def make_mixer(self) -> Mixer:
        return attention_mixer(WindowMixer, WindowConfig(5))


class TestFull(TestWindow):
    """Full attention, whose state grows."""

    def make_mixer(self) -> Mixer:
        return attention_mixer(FullMixer)


class TestLayer(MixerConformance):
    """Attention and memory together, with each form of projection."""

    hidden_size = HIDDEN
    counts_flops = False
    projections: str

    @pytest.fixture(autouse=True, params=["full", "lowrank", "shared"])
    def choose(self, request: pytest.FixtureRequest) -> None:
        self.projections = request.param

    def make_mixer(self) -> Mixer:
        return layer_mixer(projections=self.projections)


# The suite must be able to fail.


class _Broken(AllMemMixer):
    """An AllMem mixer with one fault."""

    def __init__(self, fault: Callable[[Tensor], Tensor]) -> None:
        torch.manual_seed(1)
        super().__init__(HIDDEN, MemoryConfig(chunk=5), AttentionWeights(4, 2, 8))
        self.fault = fault

    def forward(self, x: Tensor, state: Any, layout: Layout, features: Any = None) -> Any:
        return super().forward(self.fault(x), state, layout, features)


class _Forgetful(AllMemMixer):
    """Restarts its memory at every call: the defect of several published implementations."""

    def forward(self, x: Tensor, state: Any, layout: Layout, features: Any = None) -> Any:
        return super().forward(x, self.init_state(x.shape[0], x.dtype, x.device), layout, features)


class _OffByOne(AllMemMixer):
    """States its size wrongly."""

    def state_bytes(self, tokens: int, dtype: torch.dtype) -> int:
        return super().state_bytes(tokens, dtype) + 8


def _failed(make: Callable[[], Mixer]) -> set[str]:
    return {f.property for f in check_conformance(make, HIDDEN)}


def test_the_suite_passes_a_right_mixer() -> None:
    assert check_conformance(memory_mixer, HIDDEN) == []


def test_the_suite_catches_a_look_into_the_future() -> None:
    failed = _failed(lambda: _Broken(lambda x: x + x.mean(1, keepdim=True)))
    assert "no output depends on a later token" in failed


def test_the_suite_catches_a_memory_that_restarts() -> None:
    def make() -> Mixer:
        torch.manual_seed(1)
        return _Forgetful(HIDDEN, MemoryConfig(chunk=5), AttentionWeights(4, 2, 8))

    failed = _failed(make)
    assert "splitting a text changes nothing" in failed
    assert "padding changes nothing" in failed


def test_the_suite_catches_a_wrong_size() -> None:
    def make() -> Mixer:
        torch.manual_seed(1)
        return _OffByOne(HIDDEN, MemoryConfig(chunk=5), AttentionWeights(4, 2, 8))

    assert _failed(make) == {"state bytes are what the closed form says"}


def test_the_suite_catches_a_severed_gradient() -> None:
    assert "gradients equal finite differences" in _failed(lambda: _Broken(lambda x: x.detach()))


class _Raising(AllMemMixer):
    """Raises where ``refuses`` says so, as a mixer that somebody else wrote may."""

    def __init__(self, refuses: Callable[[Tensor, Layout], bool]) -> None:
        torch.manual_seed(1)
        super().__init__(HIDDEN, MemoryConfig(chunk=5), AttentionWeights(4, 2, 8))
        self.refuses = refuses

    def forward(self, x: Tensor, state: Any, layout: Layout, features: Any = None) -> Any:
        if self.refuses(x, layout):
            raise NotImplementedError("not yet")
        return super().forward(x, state, layout, features)


def _messages(make: Callable[[], Mixer]) -> dict[str, str]:
    return {f.property: f.message for f in check_conformance(make, HIDDEN)}


def test_a_mixer_that_raises_is_told_with_the_example() -> None:
    found = _messages(lambda: _Raising(lambda x, layout: x.shape[1] == 5))
    raised = "raised NotImplementedError: not yet"
    name = "splitting a text changes nothing"
    assert found[name] == f"[2, 5] tokens read after 0: {raised}"
    # Of the properties that read no five tokens at once, none is broken by it.
    assert "forks are independent and bit identical" not in found


def test_a_mixer_without_padding_is_told_the_smallest_rows_that_it_cannot_read() -> None:
    found = _messages(lambda: _Raising(lambda x, layout: len(set(layout.lengths.tolist())) > 1))
    assert found["padding changes nothing"] == (
        "padded rows of [1, 0] tokens read as [0, 0], then [1, 0]: raised NotImplementedError: "
        "not yet"
    )
    assert found["packed documents do not see each other"] == (
        "documents of [1, 2] tokens in one row: raised NotImplementedError: not yet"
    )
    assert len(found) == 2


def test_a_failure_of_large_batches_alone_is_told_with_the_largest_example() -> None:
    found = _messages(lambda: _Raising(lambda x, layout: x.shape[0] == 4 and not layout.full))
    assert found["padding changes nothing"].startswith("padded rows of [29, 3, 0, 8] tokens")


def test_a_detached_output_is_a_failure_of_the_gradients() -> None:
    class Detached(AllMemMixer):
        def forward(self, *args: Any, **options: Any) -> Any:
            y, state = super().forward(*args, **options)
            return y.detach(), state

    def make() -> Mixer:
        torch.manual_seed(1)
        return Detached(HIDDEN, MemoryConfig(chunk=5), AttentionWeights(4, 2, 8))

    (name, message), *others = _messages(make).items()
    assert name == "gradients equal finite differences"
    assert message.startswith("gradients of 11 tokens read as [7, 4]: raised RuntimeError: ")
    assert not others


def test_a_mixer_that_cannot_be_built_fails_every_property() -> None:
    def make() -> Mixer:
        raise KeyError("width")

    messages = set(_messages(make).values())
    assert messages == {"building the mixer: raised KeyError: 'width'"}


def test_the_suite_catches_a_fault_of_reading_without_gradients() -> None:
    class Careless(AllMemMixer):
        def forward(self, x: Tensor, state: Any, layout: Layout, features: Any = None) -> Any:
            if not torch.is_grad_enabled() and int(layout.start[0]) > 0:
                state = self.init_state(x.shape[0], x.dtype, x.device)
            return super().forward(x, state, layout, features)

    def make() -> Mixer:
        torch.manual_seed(1)
        return Careless(HIDDEN, MemoryConfig(chunk=5), AttentionWeights(4, 2, 8))

    message = _messages(make)["reading without gradients changes nothing"]
    assert message.startswith("2 tokens read as [1, 1], with and without gradients: outputs differ")


def test_attention_sizes_come_from_the_configuration() -> None:
    assert attention_shape(tiny_base().config) == AttentionShape(HIDDEN, 4, 2, 8)
