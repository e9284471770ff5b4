"""Bytes against what a reading leaves in memory; the comparison, its lengths and its figure."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import allmem
from allmem.choices import Conversion
from allmem.cost.comparing import Comparison, compare
from allmem.cost.figure import save_figure
from allmem.cost.flops import HEAD, MLP, OriginalAttention, readings
from allmem.cost.lengths import length_name, parse_lengths
from allmem.cost.shapes import SHAPES, outline_shape
from allmem.errors import AllMemError
from tests.models.tiny import C, S, W, base_model, read, text, tiny_model

OPEN_CHUNK = 3 * C + 2
LENGTHS = [1, W - 1, W + S, OPEN_CHUNK, 4 * C, 4 * W + 3]
MEMORIES: dict[str, dict[str, Any]] = {
    "default": {},
    "wide": {"width": 30, "heads": 4, "head_dim": 7},
    "no-momentum": {"momentum": False},
    "linear": {"network": "linear"},
    "no-convolution": {"conv": 0},
    "shared": {"projections": "shared", "rank": 3},
}


def resident(tensors: list[Tensor]) -> int:
    """Bytes that the allocator holds for tensors: of their storages, each once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def tensors_of(state: Any) -> list[Tensor]:
    return [t for layer in state.states for t in layer.tensors().values()]


@pytest.mark.parametrize("options", MEMORIES.values(), ids=MEMORIES.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bytes_are_those_that_a_reading_leaves(options: dict[str, Any], dtype: torch.dtype) -> None:
    model = tiny_model("llama", memory=options).to(dtype)
    ours = readings(model)[2]
    for tokens in LENGTHS:
        cache = read(model, text(1, tokens))
        assert ours.state_bytes(tokens, dtype) == cache.nbytes == resident(tensors_of(cache))


def test_bytes_stay_the_same_while_tokens_are_decoded() -> None:
    model = tiny_model("qwen3")
    expected = readings(model)[2].state_bytes(OPEN_CHUNK, torch.float32)
    ids = text(1, OPEN_CHUNK)
    cache = read(model, ids[:, :1])
    for t in range(1, OPEN_CHUNK):
        cache = read(model, ids[:, t : t + 1], past_key_values=cache)
        assert cache.nbytes == resident(tensors_of(cache)) == expected


def test_bytes_of_the_window_are_those_of_a_model_without_memories() -> None:
    window = readings(tiny_model("qwen3"))[1]
    cache = read(tiny_model("qwen3", mixers="window"), text(1, 40))
    assert window.state_bytes(40, torch.float32) == cache.nbytes == resident(tensors_of(cache))


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "mistral-wider"])
def test_bytes_of_the_original_are_those_of_its_cache(name: str) -> None:
    base = base_model(name)
    found = {}
    for tokens in (3, 5, 40):
        with torch.no_grad():
            cache = base(text(1, tokens), use_cache=True).past_key_values
        kept = [t for layer in cache.layers for t in (layer.keys, layer.values)]
        found[tokens] = sum(t.nbytes for t in kept)
    original = readings(allmem.convert(base, window=W, sinks=S, chunk=C))[0]
    for tokens, size in found.items():
        # transformers keeps one token less of a local layer than its window, once that is full.
        spare = sum(
            2 * m.shape.kv_heads * m.shape.head_dim * 4
            for m in original.mixers
            if isinstance(m, OriginalAttention) and m.reach is not None and tokens >= m.reach
        )
        assert original.state_bytes(tokens, torch.float32) == size + spare


def paper(name: str, memory: dict[str, Any], sinks: int | None = None) -> Comparison:
    found = outline_shape(name, Conversion(sinks=sinks, memory=memory))
    return compare(found.model, [2**17], found.dtype)


def shares(comparison: Comparison) -> tuple[float, float]:
    """FLOPs of attention and memory layers on average over a prefill, and cache, of full
    attention's."""
    full, ours = "full attention", "AllMem"
    return (
        comparison.prefill(ours, 0) / comparison.prefill(full, 0),
        comparison.cache(ours, 0) / comparison.cache(full, 0),
    )


@pytest.mark.parametrize(
    ("name", "width", "flops", "cache"),
    [("qwen3-0.6b", 256, 0.1136, 0.0498), ("qwen3-1.7b", 512, 0.2175, 0.1026)],
)
def test_the_plain_design_costs_what_is_documented(
    name: str, width: int, flops: float, cache: float
) -> None:
    assert shares(paper(name, {"width": width})) == pytest.approx((flops, cache), abs=5e-5)


@pytest.mark.parametrize(
    ("name", "memory", "flops", "cache"),
    [
        ("qwen3-0.6b", {"projections": "lowrank", "rank": 128}, 0.10, 0.045),
        ("qwen3-0.6b", {"projections": "lowrank", "rank": 256}, 0.10, 0.045),
        (
            "qwen3-1.7b",
            {"projections": "lowrank", "rank": 256, "head_dim": 128, "width": 256},
            0.13,
            0.06,
        ),
    ],
)
def test_the_recommended_sizes_stay_within_their_bounds(
    name: str, memory: dict[str, Any], flops: float, cache: float
) -> None:
    found = shares(paper(name, memory))
    assert found[0] <= flops
    assert found[1] <= cache


def test_the_shapes_have_the_size_of_their_models() -> None:
    # 0.60B and 1.72B parameters, of which 0.44B and 1.4B are no embeddings (the model cards).
    for name, total, inner in (("qwen3-0.6b", 0.596e9, 0.44e9), ("qwen3-1.7b", 1.72e9, 1.41e9)):
        model = outline_shape(name).model
        memory = set(map(id, model.memory_parameters().values()))
        base = sum(p.numel() for p in model.parameters() if id(p) not in memory)
        embeddings = model.get_input_embeddings().weight
        assert base == pytest.approx(total, rel=2e-3)
        assert base - embeddings.numel() == pytest.approx(inner, rel=5e-3)


def test_a_folder_comes_before_a_shape_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = next(iter(SHAPES))
    base_model("llama").save_pretrained(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert outline_shape(name).model.config.hidden_size == 32


def test_a_dtype_that_is_none_is_refused() -> None:
    with pytest.raises(AllMemError, match="bfloat16"):
        outline_shape("qwen3-0.6b", dtype="bfloat61")


def test_the_two_ratios_differ_by_mlp_and_head() -> None:
    comparison = compare(tiny_model("qwen3"), [50, 100])
    for name, costs in comparison.costs.items():
        rest = costs[1].prefill[MLP] + costs[1].prefill[HEAD]
        layers = comparison.prefill(name, 1)
        assert comparison.prefill(name, 1, whole=True) == pytest.approx(layers + rest / 100)
        assert comparison.decode(name, 1, whole=True) == sum(costs[1].decode.values())


def test_a_comparison_is_written_as_json() -> None:
    comparison = compare(tiny_model("qwen3"), [50, 100])
    rows = json.loads(json.dumps(comparison.to_dict()))["rows"]
    assert [(row["length"], row["reading"]) for row in rows] == [
        (n, name) for n in (50, 100) for name in ("full attention", "window and sinks", "AllMem")
    ]
    assert rows[-1]["cache_bytes"] == comparison.cache("AllMem", 1)


@pytest.mark.parametrize(
    ("written", "lengths"),
    [
        ("4k", [4096]),
        ("100, 4K,1M", [100, 4096, 2**20]),
        ("4k,...,32k", [4096, 8192, 16384, 32768]),
        ("1k,…,3k,…,8k", [1024, 2048, 3072, 6144, 8192]),
        ("8k,4k,8k", [4096, 8192]),
    ],
)
def test_lengths_are_read_as_people_write_them(written: str, lengths: list[int]) -> None:
    assert parse_lengths(written) == lengths


@pytest.mark.parametrize(
    "written", ["", "4k,,8k", "4kk", "0", "-4k", "k", "1.5k", "...,4k", "4k,...", "9999999M"]
)
def test_other_lengths_are_refused(written: str) -> None:
    with pytest.raises(AllMemError, match="lengths"):
        parse_lengths(written)


def test_lengths_have_names() -> None:
    assert [length_name(n) for n in (4096, 2**20, 3 * 2**19, 1000)] == [
        "4k",
        "1M",
        "1536k",
        "1,000",
    ]


def test_the_figure_is_written_or_names_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison = compare(tiny_model("qwen3"), [64, 128])
    pytest.importorskip("matplotlib")
    save_figure(tmp_path / "figure.png", comparison, "tiny")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(AllMemError, match=r"allmem\[eval\]"):
        save_figure(tmp_path / "none.png", comparison, "tiny")
