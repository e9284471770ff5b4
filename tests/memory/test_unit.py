"""The memory unit against its formulas, written out a second time with torch's own operations."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from allmem.config import MemoryConfig
from allmem.layout import Layout
from allmem.memory.inner_loop import inner_loop
from allmem.memory.naive import naive_inner_loop, naive_read
from allmem.memory.projections import AttentionWeights, Written
from allmem.memory.unit import MemoryUnit
from allmem.mixers.conformance import randomise

CPU = torch.device("cpu")
HIDDEN, QUERY_HEADS, KV_HEADS, HEAD = 24, 4, 2, 8


def attention_matrices(query_heads: int = QUERY_HEADS, head_dim: int = HEAD) -> AttentionWeights:
    g = torch.Generator().manual_seed(5)

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=g)

    return AttentionWeights(
        query_heads,
        KV_HEADS,
        head_dim,
        q=matrix(query_heads * head_dim, HIDDEN),
        k=matrix(KV_HEADS * head_dim, HIDDEN),
        v=matrix(KV_HEADS * head_dim, HIDDEN),
        o=matrix(HIDDEN, query_heads * head_dim),
    )


def unit(**options: Any) -> MemoryUnit:
    torch.manual_seed(2)
    config = MemoryConfig.from_dict({"chunk": 5, "rank": 3, **options}).sized(HIDDEN, KV_HEADS)
    made = MemoryUnit(HIDDEN, config, attention_matrices()).double()
    randomise(made)
    return made


def by_formula(u: MemoryUnit, x: Tensor) -> Tensor:
    """Design of the layer, line by line, for whole sequences and full-rank projections."""
    config, heads, d = u.config, u.heads, u.head_dim

    def rms(z: Tensor) -> Tensor:
        return z * (z.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()

    projected = {}
    for name in ("q", "k", "v"):
        p = x @ getattr(u.projections, name).weight.T
        if config.conv:
            # torch's conv1d correlates: its last weight meets the current token.
            taps = u.convolutions[name].flip(0).T[:, None]
            padded = F.pad(p.mT, (config.conv - 1, 0))
            p = F.conv1d(padded, taps, groups=p.shape[-1]).mT
        projected[name] = p.unflatten(-1, (heads, d))
    activation = F.silu if config.feature_activation else torch.nn.Identity()
    q, k, v = activation(projected["q"]), activation(projected["k"]), projected["v"]
    if config.qk_norm == "rms":
        q, k = rms(q) * u.q_norm.weight, rms(k) * u.k_norm.weight
    elif config.qk_norm == "l2":
        q, k = (z / (z.pow(2).sum(-1, keepdim=True) + 1e-6).sqrt() for z in (q, k))
    if config.value_activation:
        v = F.silu(v)
    if config.normalize_values:
        v = rms(v) * u.v_norm.weight
    eta = F.softplus(x @ u.eta.weight.T + u.eta.bias) * min(
        1, config.reference_chunk / config.chunk
    )
    beta = torch.sigmoid(x @ u.beta.weight.T + u.beta.bias)
    read, _, _ = naive_inner_loop(
        q, k, v, eta.unflatten(-1, (heads, -1)), beta, dict(u.initial), config
    )
    if config.output_norm:
        read = rms(read) * u.o_norm.weight
    out = read.flatten(2)
    if config.gate:
        out = out * 2 * torch.sigmoid(x @ u.projections.g.weight.T)
    return out @ u.projections.o.weight.T


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"conv": 0},
        {"conv": 2, "gate": False},
        {"normalize_values": False, "reference_chunk": 2},
        {"network": "linear"},
        {"feature_activation": False},
        {"output_norm": False},
        {"qk_norm": "l2", "value_activation": True},
        {"qk_norm": "none", "value_activation": True, "normalize_values": False},
    ],
    ids=[
        "default",
        "no-conv",
        "two-taps-no-gate",
        "plain-values-scaled-rates",
        "linear",
        "no-feature-activation",
        "no-output-norm",
        "keys-of-length-one",
        "keys-not-normalised",
    ],
)
def test_the_unit_computes_the_formulas_and_their_gradients(options: dict[str, Any]) -> None:
    u = unit(**options)
    x = torch.randn(2, 23, HIDDEN, dtype=torch.float64, requires_grad=True)
    y, _ = u(x, u.begin(2, x.dtype), Layout.dense(0, 2, 23, CPU))
    expected = by_formula(u, x)
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
    probe = torch.randn_like(y)
    leaves = {"x": x, **dict(u.named_parameters())}
    got = torch.autograd.grad((y * probe).sum(), list(leaves.values()))
    want = torch.autograd.grad((expected * probe).sum(), list(leaves.values()))
    for name, a, b in zip(leaves, got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9, msg=name)


def test_projections_start_where_the_attention_stands() -> None:
    """Two query heads of 8 on d = 12: tiles of 8 and 4, the second head cut with its tile."""
    weights = attention_matrices()
    config = MemoryConfig(chunk=5).sized(HIDDEN, KV_HEADS)
    assert config.head_dim == 12
    projections = MemoryUnit(HIDDEN, config, weights).projections
    q = weights.q.view(KV_HEADS, 2, HEAD, HIDDEN)
    expected_q = torch.cat([q[:, 0], q[:, 1, :4]], 1).flatten(0, 1)
    torch.testing.assert_close(projections.q.weight, expected_q)
    k = weights.k.view(KV_HEADS, HEAD, HIDDEN)
    torch.testing.assert_close(projections.k.weight, torch.cat([k, k[:, :4]], 1).flatten(0, 1))


def test_query_heads_on_one_slot_are_averaged_and_their_outputs_summed() -> None:
    """Two query heads of 8 on one tile, as in Qwen3-0.6B."""
    weights = attention_matrices()
    config = MemoryConfig(chunk=5, head_dim=HEAD).sized(HIDDEN, KV_HEADS)
    projections = MemoryUnit(HIDDEN, config, weights).projections
    q = weights.q.view(KV_HEADS, 2, HEAD, HIDDEN).mean(1).flatten(0, 1)
    o = weights.o.view(HIDDEN, KV_HEADS, 2, HEAD).sum(2).flatten(1)
    torch.testing.assert_close(projections.q.weight, q)
    torch.testing.assert_close(projections.o.weight, o)


def test_a_head_on_several_tiles_is_shared_out() -> None:
    """One query head of 8 on d = 16: on both tiles, half of its output columns on each."""
    weights = attention_matrices(query_heads=2)
    config = MemoryConfig(chunk=5, head_dim=2 * HEAD).sized(HIDDEN, KV_HEADS)
    projections = MemoryUnit(HIDDEN, config, weights).projections
    q = weights.q.view(KV_HEADS, HEAD, HIDDEN).repeat(1, 2, 1).flatten(0, 1)
    o = weights.o.view(HIDDEN, KV_HEADS, HEAD).repeat(1, 1, 2).flatten(1) / 2
    torch.testing.assert_close(projections.q.weight, q)
    torch.testing.assert_close(projections.o.weight, o)


def test_the_starting_step_is_the_named_fraction_of_the_curvature() -> None:
    """E|phi|^2 of the hidden vector, measured at the start, times the rate gives ``step``."""
    torch.manual_seed(0)
    config = MemoryConfig(chunk=16, heads=2, head_dim=64, width=96).sized(128, 2)
    u = MemoryUnit(128, config, AttentionWeights(2, 2, 64))
    x = torch.randn(1, 2000, 128)
    eta, beta = u.rates(Written(x))
    k = F.rms_norm(torch.randn(2000, 64), (64,))
    phi = F.silu(k @ u.initial["gate"][0].T) * (k @ u.initial["up"][0].T)
    assert float(eta[..., 2].mean() * phi.square().sum(-1).mean()) == pytest.approx(0.1, rel=0.15)
    torch.testing.assert_close(eta[..., 0], eta[..., 2] * 0.003, rtol=1e-3, atol=0)
    assert float(beta.detach().mean()) == pytest.approx(0.119, abs=1e-3)


def test_all_rates_may_start_at_one_number() -> None:
    config = MemoryConfig(chunk=2048, base_rate=0.001, reference_chunk=1024).sized(HIDDEN, KV_HEADS)
    u = MemoryUnit(HIDDEN, config, attention_matrices())
    eta, _ = u.rates(Written(torch.randn(1, 5, HIDDEN)))
    torch.testing.assert_close(eta, torch.full_like(eta, 0.0005), rtol=1e-5, atol=0)


@pytest.mark.parametrize("chunk", [32, 128, 512, 2048, 4096])
def test_the_inner_loss_falls_on_zipf_keys_at_the_starting_values(chunk: int) -> None:
    """Keys drawn from a Zipf law make one direction of a chunk's curvature grow with the chunk: a
    step that is right for 32 tokens diverges at 512 unless it is scaled."""
    torch.manual_seed(0)
    heads, d, chunks = 2, 64, 6
    config = MemoryConfig(chunk=chunk, heads=heads, head_dim=d, width=2 * d).sized(heads * d, heads)
    u = MemoryUnit(heads * d, config, AttentionWeights(heads, heads, d))
    words = 1000
    table_k = F.rms_norm(torch.randn(words, heads, d), (d,))
    table_v = F.rms_norm(torch.randn(words, heads, d), (d,))
    law = 1 / torch.arange(1, words + 1, dtype=torch.float64)
    drawn = torch.multinomial(law, chunk * chunks, replacement=True)
    k, v = table_k[drawn][None], table_v[drawn][None]
    eta, beta = u.rates(Written(torch.zeros(1, len(drawn), heads * d)))
    state = u.begin(1, k.dtype).memory

    def expected_loss() -> float:
        """Over the law itself, so that the few words of a short chunk add no noise."""
        weights = {name: w[0] for name, w in state.weights.items()}
        read = naive_read(table_k.transpose(0, 1), weights, config)
        losses = (read - table_v.transpose(0, 1)).square().sum(-1) / 2
        return float((losses.mean(0).double() * law / law.sum()).sum())

    losses = []
    with torch.no_grad():
        for c in range(chunks):
            losses.append(expected_loss())
            now = slice(c * chunk, (c + 1) * chunk)
            layout = Layout.dense(c * chunk, 1, chunk, CPU)
            parts = (k[:, now], k[:, now], v[:, now], eta[:, now], beta[:, now])
            _, state = inner_loop(*parts, state, dict(u.initial), layout, config)
        losses.append(expected_loss())
    assert losses[-1] < 0.9 * losses[0]
    assert all(after < before * 1.01 for before, after in pairwise(losses)), losses
