"""TTT layers: the contract, an oracle by autograd, and the code of others."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from allmem.errors import AllMemError
from allmem.layout import Layout
from allmem.memory.projections import AttentionWeights
from allmem.memory.state import FastWeights
from allmem.mixers.base import Mixer
from allmem.mixers.conformance import MixerConformance
from allmem.mixers.fast_mlp import FastMLP
from allmem.mixers.heads import Heads
from allmem.mixers.registry import memory_kind
from allmem.mixers.ttt_rule import HeadLayerNorm, TTTMemory, ttt_rule
from tests.mixers.others import naive
from tests.mixers.small import ATTENTION, HIDDEN, WINDOW
from tests.mixers.zipf import inner_losses

SMALL: dict[str, Any] = {"key_dim": 6, "mini_batch": 5, "rank": 3}
CPU = torch.device("cpu")

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("ttt_linear", {}),
    "mlp": ("ttt_mlp", {"width": 7}),
    "mlp-of-default-width": ("ttt_mlp", {"key_dim": 3}),
    "mini-batch-of-one": ("ttt_linear", {"mini_batch": 1}),
    "unit-keys": ("ttt_linear", {"qk_norm": "l2", "base_lr": 4.0}),
    "low-rank": ("ttt_linear", {"projections": "lowrank", "gate": "none", "conv": 0}),
    "evicted": ("ttt_linear", {"write_scope": "evicted"}),
    "evicted-mlp": ("ttt_mlp", {"write_scope": "evicted", "width": 7}),
}


def make(name: str, options: dict[str, Any]) -> Mixer:
    torch.manual_seed(1)
    kind = memory_kind(name)
    assert kind is not None
    chosen = kind.options({**SMALL, **options})
    return kind.make(HIDDEN, chosen, ATTENTION, WINDOW)


class TestTTT(MixerConformance):
    """The contract, with every option."""

    hidden_size = HIDDEN
    name: str
    options: dict[str, Any]

    @pytest.fixture(autouse=True, params=CASES.values(), ids=CASES.keys())
    def choose(self, request: pytest.FixtureRequest) -> None:
        self.name, self.options = request.param

    def make_mixer(self) -> Mixer:
        return make(self.name, self.options)


# The rule, on given queries, keys, values and rates.


class Problem:
    """Random inputs of one document, H heads of size d."""

    def __init__(self, network: FastMLP, tokens: int, mini_batch: int, dtype: torch.dtype) -> None:
        g = torch.Generator().manual_seed(3)
        heads, size = 2, network.sizes[0]

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

        self.network, self.tokens = network, tokens
        self.q, self.k, self.v = (normal(1, heads, tokens, size) for _ in range(3))
        self.rate = 0.3 * normal(1, heads, tokens, 1).sigmoid()
        place = torch.arange(1, mini_batch + 1, dtype=dtype)
        self.scale = 1 / place + 0.05 * normal(mini_batch).square()
        self.norm = HeadLayerNorm(1 + 0.2 * normal(heads, 1, size), 0.2 * normal(heads, 1, size))
        self.initial: FastWeights = {
            name: normal(heads, *shape) * shape[1] ** -0.5
            for name, shape in network.shapes().items()
        }

    def run(self, cuts: tuple[int, ...] = ()) -> tuple[Tensor, TTTMemory]:
        """The rule on the document, cut into calls: f(q_t; W_t) and the memory."""
        memory = TTTMemory(
            {n: w[None] for n, w in self.initial.items()},
            {n: torch.zeros_like(w[None]) for n, w in self.initial.items()},
        )
        found = []
        ends = (*cuts, self.tokens)
        for start, end in zip((0, *cuts), ends, strict=True):
            now = slice(start, end)
            q, k, v, rate = (t[:, :, now] for t in (self.q, self.k, self.v, self.rate))
            layout = Layout.dense(start, 1, end - start, CPU)
            z, memory = ttt_rule(q, k, v, rate, self.scale, self.norm, self.network, memory, layout)
            found.append(z)
        return torch.cat(found, 2), memory


def oracle(p: Problem) -> tuple[Tensor, FastWeights]:
    """The same by definition: one token at a time, its gradient by autograd."""

    def run(z: Tensor, weights: FastWeights) -> Tensor:
        for layer in range(1, len(p.network.sizes)):
            if layer > 1:
                z = F.gelu(z, approximate="tanh")
            z = torch.einsum("hoi,hi->ho", weights[f"w{layer}"], z) + weights[f"b{layer}"][..., 0]
        return z

    def normalised(z: Tensor) -> Tensor:
        centred = z - z.mean(-1, keepdim=True)
        unit = centred / (z.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
        return unit * p.norm.weight[:, 0] + p.norm.bias[:, 0]

    weights, found = p.initial, []
    for t in range(p.tokens):
        place = t % len(p.scale)
        if place == 0:
            start = {n: w.detach().requires_grad_() for n, w in weights.items()}
            summed = {n: torch.zeros_like(w) for n, w in weights.items()}
        k, v, r = p.k[0, :, t], p.v[0, :, t], p.rate[0, :, t, 0]
        losses = 0.5 * (normalised(run(k, start)) - (v - k)).square().sum(-1)
        gradients = torch.autograd.grad(losses.sum(), list(start.values()))
        for name, gradient in zip(start, gradients, strict=True):
            summed[name] = summed[name] + r[:, None, None] * gradient
        weights = {n: w.detach() - p.scale[place] * summed[n] for n, w in start.items()}
        found.append(run(p.q[0, :, t], weights))
    return torch.stack(found, 1)[None], weights


NETWORKS = {
    "linear": FastMLP((6, 6), bias=True, gelu="tanh"),
    "mlp": FastMLP((6, 9, 6), bias=True, gelu="tanh"),
}


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS.keys())
def test_the_dual_form_equals_gradients_by_autograd(network: FastMLP) -> None:
    p = Problem(network, tokens=22, mini_batch=4, dtype=torch.float64)
    want, _ = oracle(p)
    for cuts in ((), (1, 2, 3, 9, 16), tuple(range(1, 22))):
        got, _ = p.run(cuts)
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS.keys())
def test_closed_mini_batches_leave_the_weights_of_their_last_token(network: FastMLP) -> None:
    p = Problem(network, tokens=20, mini_batch=4, dtype=torch.float64)
    _, want = oracle(p)
    _, memory = p.run(cuts=(7,))
    for name, weight in want.items():
        torch.testing.assert_close(memory.weights[name][0], weight, rtol=1e-10, atol=1e-10)
        assert not bool(memory.gradient[name].any())


def test_equals_the_naive_code_of_flash_linear_attention() -> None:
    """fp32, as that code computes. Its rate belongs to the token that reads, so ours is constant;
    it adds LN(z) to z, where the authors' code and ours add it to the query."""
    theirs = naive("ttt")
    p = Problem(NETWORKS["linear"], tokens=48, mini_batch=16, dtype=torch.float32)
    p.rate = torch.full_like(p.rate, 0.2)
    eta = 0.2 * p.scale[torch.arange(48) % 16][None, :, None, None].expand(1, 48, 2, 1)
    want, state, bias = theirs.chunk_ttt_linear_ref(
        *(t.transpose(1, 2).clone() for t in (p.q, p.k, p.v)),
        w=p.norm.weight[:, 0].clone(),
        b=p.norm.bias[:, 0].clone(),
        eta=eta.clone(),
        scale=1.0,
        mini_batch_size=16,
        initial_state=p.initial["w1"].mT[None].clone(),
        initial_state_bias=p.initial["b1"].mT[None].clone(),
        output_final_state=True,
    )
    for cuts in ((), tuple(range(1, 48))):
        found, memory = p.run(cuts)
        got = (found + p.norm(found)).transpose(1, 2)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(memory.weights["w1"].mT, state, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(memory.weights["b1"].mT, bias, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["ttt_linear", "ttt_mlp"])
def test_the_inner_loss_falls_on_a_zipf_text_at_the_starting_values(name: str) -> None:
    kind = memory_kind(name)
    assert kind is not None
    attention = AttentionWeights(query_heads=2, kv_heads=2, head_dim=64)
    mixer: Any = kind.make(128, kind.options({}), attention, WINDOW)

    def loss(heads: Heads, memory: TTTMemory) -> Tensor:
        z = mixer.network.apply(heads.k, memory.weights)
        ln = HeadLayerNorm(mixer.norm_weight[:, None], mixer.norm_bias[:, None])
        return 0.5 * (ln(z) - (heads.v - heads.k)).square().sum(-1)

    losses = inner_losses(mixer, loss)
    assert losses[-1] < 0.5 * losses[0], losses
    assert all(after < before * 1.02 for before, after in pairwise(losses)), losses


def test_values_of_another_size_than_keys_are_refused() -> None:
    with pytest.raises(AllMemError, match="value_dim"):
        make("ttt_linear", {"value_dim": 5})
