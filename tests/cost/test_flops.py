"""The closed forms of FLOPs against what torch counts while a model reads.

Torch counts the products that are computed, the closed forms those that the result depends on. The
two differ where a mask throws scores away, by exactly what ``allmem.cost.executed`` says.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import allmem
from allmem.attention.blocks import BLOCK
from allmem.choices import Conversion
from allmem.config import WindowConfig
from allmem.cost.executed import decoded_pairs, square_pairs, window_pairs
from allmem.cost.flops import HEAD, MLP, mixing, readings
from allmem.cost.shapes import outline_shape
from allmem.errors import AllMemError
from allmem.layout import Layout
from allmem.mixers.attention import WindowMixer, causal_pairs
from allmem.models.layer import MixedAttention
from allmem.models.modeling import AllMemForCausalLM
from examples.my_mixer import MineMixer
from tests.models.tiny import C, S, W, base_model, text, tiny_model

T = 4 * W + 3
MEMORIES: dict[str, dict[str, Any]] = {
    "full": {},
    "lowrank": {"projections": "lowrank", "rank": 3},
    "shared": {"projections": "shared", "rank": 3},
    "shared-few-heads": {"projections": "shared", "rank": 3, "heads": 1, "head_dim": 12},
    "wide": {"width": 30, "heads": 4, "head_dim": 7},
    "linear": {"network": "linear"},
    "dot": {"loss": "dot"},
    "plain": {"momentum": False, "gate": False, "conv": 0, "clip": None, "norm": "none"},
}


class Counter(FlopCounterMode):
    """Torch's counter; it counts nothing for fused attention on a CPU, so that is not fused."""

    def __init__(self) -> None:
        super().__init__(display=False)
        self.plain = sdpa_kernel(SDPBackend.MATH)

    def __enter__(self) -> Counter:
        self.plain.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> Any:
        super().__exit__(*error)
        return self.plain.__exit__(*error)

    def of(self, *modules: str) -> int:
        """Of modules by the ends of their names."""
        counts = self.get_flop_counts()
        return sum(sum(c.values()) for name, c in counts.items() if name.endswith(modules))


@torch.no_grad()
def counted(work: Callable[[], Any]) -> int:
    with Counter() as counter:
        work()
    return counter.get_total_flops()


def masked(mixed: MixedAttention, tokens: int, scored: int) -> int:
    """FLOPs of scores beyond those that a query needs."""
    shape = mixed.attention.shape
    return 4 * shape.query_heads * shape.head_dim * (scored - mixed.attention.pairs(tokens))


def masked_in_prefill(model: AllMemForCausalLM, tokens: int) -> int:
    total = 0
    for mixed in model.mixers():
        attention = mixed.attention
        scored = square_pairs(tokens)
        if isinstance(attention, WindowMixer):
            scored = window_pairs(tokens, attention.window)
        total += masked(mixed, tokens, scored)
    return total


@pytest.mark.parametrize("options", MEMORIES.values(), ids=MEMORIES.keys())
@pytest.mark.parametrize("calls", [(T,), (1,), (7, 1, T - 8)], ids=str)
def test_every_part_of_a_layer_is_what_torch_counts(
    options: dict[str, Any], calls: tuple[int, ...]
) -> None:
    model = tiny_model("llama", memory=options)
    mixed = model.mixers()[1]
    x = torch.randn(1, T, 32)
    start, state = 0, mixed.init_state(1, x.dtype, x.device)
    with Counter() as counter, torch.no_grad():
        for n in calls:
            layout = Layout.dense(start, 1, n, x.device)
            _, state = mixed(x[:, start : start + n], state, layout)
            start += n
    parts = mixed.flops_by_part(start)
    projections = [f".{name}_proj" for name in "qkvo"]
    assert parts["attention projections"] == counter.of(*projections)
    assert parts["memory rates"] == counter.of(".eta", ".beta")
    total = parts["memory projections"]
    if options.get("projections") == "shared":
        # The frozen part of the output projection is no module's own.
        total -= 2 * start * 32 * 32
    assert total == counter.of(*(f".projections.{name}" for name in "qkvog"))
    loop = ("memory read", "memory key forward", "memory gradient")
    inner = sum(parts[part] for part in loop)
    memory = counter.of(".memory.unit") - parts["memory projections"] - parts["memory rates"]
    assert inner == memory
    core = counter.of(".attention.core") - parts["attention projections"]
    if len(calls) == 1:
        scored = window_pairs(start, WindowConfig(W, S), call=start)
        assert core == parts["attention scores"] + masked(mixed, start, scored)
    assert mixed.flops(start) == sum(parts.values())


@pytest.mark.parametrize(
    "tokens", [1, 2, W, W + 1, W + S, 2 * W + S, BLOCK, BLOCK + 1, 2 * BLOCK + 77]
)
@pytest.mark.parametrize("sinks", [0, S], ids=["no-sinks", "sinks"])
def test_window_scores_are_what_torch_counts(tokens: int, sinks: int) -> None:
    model = tiny_model("llama", mixers="window", sinks=sinks)
    mixed = model.mixers()[0]
    x = torch.randn(1, tokens, 32)

    def read() -> None:
        state = mixed.init_state(1, x.dtype, x.device)
        for start in range(0, tokens, 100):
            part = x[:, start : start + 100]
            _, state = mixed(part, state, Layout.dense(start, 1, part.shape[1], x.device))

    scored = window_pairs(tokens, WindowConfig(W, sinks), call=100)
    assert counted(read) == mixed.flops(tokens) + masked(mixed, tokens, scored)


@pytest.mark.parametrize("tokens", [1, W, W + S, T])
def test_a_window_s_pairs_are_the_keys_that_its_queries_see(tokens: int) -> None:
    query, key = torch.arange(tokens)[:, None], torch.arange(tokens)
    behind = query - key
    sees = (behind >= 0) & ((behind < W) | (key < S))
    mixer = tiny_model("llama", mixers="window").mixers()[0].attention
    assert mixer.pairs(tokens) == int(sees.sum())
    assert causal_pairs(tokens) == int((behind >= 0).sum())


BASES = ["qwen3", "llama-one-kv-head", "mistral-wider", "smollm3", "olmo2", "phi3", "gemma3"]


@pytest.mark.parametrize("name", BASES)
def test_prefill_is_what_torch_counts(name: str) -> None:
    model = tiny_model(name, memory={"width": 20})
    ours = readings(model)[2].prefill(T)
    found = counted(lambda: model(text(1, T), logits_to_keep=1))
    assert found == sum(ours.values()) + masked_in_prefill(model, T)


@pytest.mark.parametrize("name", BASES)
def test_the_original_s_prefill_is_what_torch_counts(name: str) -> None:
    base = base_model(name)
    found = counted(lambda: base(text(1, T), logits_to_keep=1, use_cache=False))
    model = allmem.convert(base, window=W, sinks=S, chunk=C)
    original = readings(model)[0]
    masked = sum(
        4
        * m.attention.shape.query_heads
        * m.attention.shape.head_dim
        * (square_pairs(T) - causal_pairs(T, m.own_window))
        for m in model.mixers()
    )
    assert found == sum(original.prefill(T).values()) + masked


def test_layers_that_keep_full_attention_cost_what_they_cost() -> None:
    model = tiny_model("qwen3", mixers="allmem,full")
    found = counted(lambda: model(text(1, T), logits_to_keep=1))
    _, window, ours = readings(model)
    assert found == sum(ours.prefill(T).values()) + masked_in_prefill(model, T)
    assert window.prefill(T)["attention scores"] == ours.prefill(T)["attention scores"]


@pytest.mark.parametrize("before", [1, W - 1, W + S, T])
def test_a_decoded_token_is_what_torch_counts(before: int) -> None:
    model = tiny_model("qwen3")
    ids = text(1, before + 1)
    with torch.no_grad():
        cache = model(ids[:, :before], use_cache=True).past_key_values
    found = counted(lambda: model(ids[:, before:], past_key_values=cache))
    ours = readings(model)[2].decode(before)
    seen = min(before + 1, W + S)
    shape = model.mixers()[0].attention.shape
    empty = decoded_pairs(WindowConfig(W, S)) - seen
    scores = 4 * shape.query_heads * shape.head_dim * len(model.mixers())
    assert ours["attention scores"] == scores * seen
    assert found == sum(ours.values()) + scores * empty


def test_decoding_the_original_is_what_torch_counts() -> None:
    base = base_model("qwen3")
    ids = text(1, T + 1)
    with torch.no_grad():
        cache = base(ids[:, :T], use_cache=True).past_key_values
    found = counted(lambda: base(ids[:, T:], past_key_values=cache))
    original = readings(allmem.convert(base, window=W, sinks=S, chunk=C))[0]
    assert found == sum(original.decode(T).values())


def test_prefill_is_the_sum_of_its_tokens() -> None:
    for reading in readings(tiny_model("gemma3")):
        tokens = [mixing(reading.decode(t)) for t in range(T)]
        assert sum(tokens) == mixing(reading.prefill(T))


def test_experts_count_where_a_token_meets_them() -> None:
    base = base_model("qwen3-moe")
    base.set_experts_implementation("eager")
    ids = text(1, T)
    found = counted(lambda: base(ids, logits_to_keep=1, use_cache=False))
    model = allmem.convert(base, window=W, sinks=S, chunk=C)
    original = readings(model)[0].prefill(T)
    shape = model.mixers()[0].attention.shape
    extra = 4 * shape.query_heads * shape.head_dim * (square_pairs(T) - causal_pairs(T))
    assert found == sum(original.values()) + 2 * extra
    model.config.__dict__["text_config"] = SimpleNamespace(model_type="strange")
    with pytest.raises(AllMemError, match="num_experts_per_tok"):
        readings(model)


def test_a_mixer_that_does_not_split_its_cost_has_one_part() -> None:
    model = allmem.convert(base_model("llama"), window=W, sinks=S, mixers="mine")
    memory = model.mixers()[0].memory
    assert isinstance(memory, MineMixer)
    ours = readings(model)[2].prefill(T)
    assert ours["memory"] == 2 * memory.flops(T)
    assert list(ours)[-2:] == [MLP, HEAD]


def by_hand(hidden: int, width: int, tokens: int) -> tuple[float, float]:
    """FLOPs a token of a Qwen3 layer, full and with memory, from its sizes alone."""
    projections = 2 * hidden * (16 * 128 * 2 + 8 * 128 * 2)
    full = projections + 4 * 16 * 128 * (tokens + 1) / 2
    seen = 4096 + 128
    window = projections + 4 * 16 * 128 * (seen - seen * (seen - 1) / 2 / tokens)
    fast = 3 * hidden * width
    memory = 5 * 2 * hidden * hidden + 2 * hidden * 8 * 4 + (3 * 2 + 2 / 3) * fast
    return full, window + memory


@pytest.mark.parametrize(
    ("name", "hidden", "share"), [("qwen3-0.6b", 1024, 0.115), ("qwen3-1.7b", 2048, 0.22)]
)
def test_the_paper_s_shapes_cost_what_a_calculation_by_hand_says(
    name: str, hidden: int, share: float
) -> None:
    tokens, width = 2**17, hidden // 4
    model = outline_shape(name, Conversion(memory={"width": width})).model
    full, _, ours = (mixing(r.prefill(tokens)) / tokens / 28 for r in readings(model))
    assert (full, ours) == pytest.approx(by_hand(hidden, width, tokens), rel=1e-12)
    assert ours / full == pytest.approx(share, abs=3e-3)
