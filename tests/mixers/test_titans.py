"""Titans: the contract, the recurrence token by token with gradients by autograd, and the code of
others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from allmem.layout import Layout
from allmem.memory.projections import AttentionWeights
from allmem.memory.state import FastWeights
from allmem.mixers.base import Mixer
from allmem.mixers.conformance import MixerConformance
from allmem.mixers.fast_mlp import FastMLP, zeros_like
from allmem.mixers.heads import Heads
from allmem.mixers.registry import memory_kind
from allmem.mixers.titans_rule import TitansMemory, TitansRates, titans_rule
from tests.mixers.small import ATTENTION, HIDDEN, WINDOW
from tests.mixers.zipf import inner_losses

SMALL: dict[str, Any] = {"key_dim": 6, "value_dim": 5, "width": 7, "mini_batch": 5, "rank": 3}
CPU = torch.device("cpu")

CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"layers": 1},
    "deep": {"layers": 3},
    "mini-batch-of-one": {"mini_batch": 1},
    "default-width": {"width": None, "key_dim": 3},
    "plain": {"conv": 0, "activation": False, "gate": "none", "projections": "lowrank"},
    "rms-keys": {"qk_norm": "rms", "base_lr": 0.5},
    "evicted": {"write_scope": "evicted"},
}


def make(**options: Any) -> Mixer:
    torch.manual_seed(1)
    kind = memory_kind("titans")
    assert kind is not None
    return kind.make(HIDDEN, kind.options({**SMALL, **options}), ATTENTION, WINDOW)


class TestTitans(MixerConformance):
    """The contract, with every option."""

    hidden_size = HIDDEN
    options: dict[str, Any]

    @pytest.fixture(autouse=True, params=CASES.values(), ids=CASES.keys())
    def choose(self, request: pytest.FixtureRequest) -> None:
        self.options = request.param

    def make_mixer(self) -> Mixer:
        return make(**self.options)


# The rule, on given queries, keys, values and rates.


class Problem:
    """Random inputs of one document in float64, H heads."""

    def __init__(self, network: FastMLP, tokens: int, mini_batch: int) -> None:
        g = torch.Generator().manual_seed(3)
        heads = 2

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g, dtype=torch.float64)

        self.network, self.tokens, self.mini_batch = network, tokens, mini_batch
        self.q, self.k = (normal(1, heads, tokens, network.sizes[0]) for _ in range(2))
        self.v = normal(1, heads, tokens, network.sizes[-1])
        self.theta = 0.05 * normal(1, heads, tokens, 1).sigmoid()
        self.eta, self.alpha = (normal(1, heads, tokens, 1).sigmoid() for _ in range(2))
        self.initial: FastWeights = {
            name: normal(heads, *shape) * shape[1] ** -0.5
            for name, shape in network.shapes().items()
        }

    def run(self, cuts: tuple[int, ...] = ()) -> tuple[Tensor, TitansMemory]:
        """The rule on the document, cut into calls: what was read, and the memory."""
        weights = {n: w[None] for n, w in self.initial.items()}
        memory = TitansMemory(weights, zeros_like(weights), weights)
        found = []
        for start, end in zip((0, *cuts), (*cuts, self.tokens), strict=True):
            now = slice(start, end)
            theta = self.theta[:, :, now]
            rates = TitansRates(
                theta,
                self.eta[:, :, now].log(),
                (-self.alpha[:, :, now]).log1p(),
                torch.ones_like(theta),
            )
            q, k, v = (t[:, :, now] for t in (self.q, self.k, self.v))
            read, memory = titans_rule(
                q, k, v, rates, self.network, self.mini_batch, memory,
                Layout.dense(start, 1, end - start, CPU),
            )  # fmt: skip
            found.append(read)
        return torch.cat(found, 2), memory


def oracle(p: Problem) -> tuple[Tensor, FastWeights, FastWeights]:
    """The equations of the paper, one token at a time, with gradients by autograd."""

    def run(z: Tensor, weights: FastWeights) -> Tensor:
        for layer in range(1, len(p.network.sizes)):
            z = F.gelu(z) if layer > 1 else z
            z = torch.einsum("hoi,hi->ho", weights[f"w{layer}"], z)
        return z

    weights, momentum, found = p.initial, zeros_like(p.initial), []
    for t in range(p.tokens):
        if t % p.mini_batch == 0:
            anchor = {n: w.detach().requires_grad_() for n, w in weights.items()}
        loss = 0.5 * (run(p.k[0, :, t], anchor) - p.v[0, :, t]).square().sum()
        gradients = torch.autograd.grad(loss, list(anchor.values()))
        theta, eta, alpha = (rate[0, :, t, :, None] for rate in (p.theta, p.eta, p.alpha))
        momentum = {
            n: eta * s - theta * g for (n, s), g in zip(momentum.items(), gradients, strict=True)
        }
        weights = {n: (1 - alpha) * w + momentum[n] for n, w in weights.items()}
        found.append(run(p.q[0, :, t], weights))
    return torch.stack(found, 1)[None].detach(), weights, momentum


@pytest.mark.parametrize(
    "sizes", [(6, 5), (6, 9, 5), (6, 9, 7, 5)], ids=["linear", "two-layers", "three-layers"]
)
def test_the_dual_form_equals_the_recurrence_of_the_paper(sizes: tuple[int, ...]) -> None:
    p = Problem(FastMLP(sizes), tokens=22, mini_batch=4)
    want, weights, momentum = oracle(p)
    for cuts in ((), (1, 2, 3, 9, 16), tuple(range(1, 22))):
        got, memory = p.run(cuts)
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
        for name in weights:
            torch.testing.assert_close(memory.weights[name][0], weights[name].detach())
            torch.testing.assert_close(memory.momentum[name][0], momentum[name].detach())


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_equals_the_neural_memory_of_titans_pytorch(depth: int) -> None:
    """Its chunks share one surprise, one momentum and one decay, so they are one token long here;
    its ``batch_size`` is our mini-batch. Its loss is a mean over features: theta = 2 lr / d."""
    theirs = pytest.importorskip("titans_pytorch")
    torch.manual_seed(0)
    size, tokens, mini_batch, rows = 6, 23, 4, 2
    memory = theirs.NeuralMemory(
        dim=size,
        chunk_size=1,
        batch_size=mini_batch,
        pre_rmsnorm=False,
        mem_model_norm_add_residual=False,
        model=theirs.MemoryMLP(size, depth=depth, expansion_factor=1.5),
    ).double()
    x = torch.randn(rows, tokens, size, dtype=torch.float64)

    def by_token(linear: torch.nn.Module) -> Tensor:
        return linear[0](x)[:, None]  # type: ignore[index]

    with torch.no_grad():
        want, _ = memory(x)
        q, k, v = (f(x)[:, None] for f in (memory.to_queries, memory.to_keys, memory.to_values))
        rates = TitansRates(
            by_token(memory.to_adaptive_step).sigmoid() * 2 / size,
            F.logsigmoid(by_token(memory.to_momentum)),
            F.logsigmoid(-by_token(memory.to_decay_factor)),
            torch.ones(rows, 1, tokens, 1, dtype=torch.float64),
        )
        matrices = [w.mT.expand(rows, 1, -1, -1) for w in memory.memory_model_parameters]
        weights = {f"w{i}": w for i, w in enumerate(matrices, 1)}
        network = FastMLP((size, *(w.shape[2] for w in matrices)))
        start = TitansMemory(weights, zeros_like(weights), weights)
        got, after = titans_rule(
            q, k, v, rates, network, mini_batch, start, Layout.dense(0, rows, tokens, CPU)
        )
        torch.testing.assert_close(got[:, 0], want, rtol=1e-10, atol=1e-10)

        # Decoding: both one token at a time.
        ours, their_state, pieces = start, None, []
        for t in range(tokens):
            now = slice(t, t + 1)
            want_now, their_state = memory(x[:, now], state=their_state)
            rates_now = TitansRates(
                *(r[:, :, now] for r in (rates.theta, rates.log_eta, rates.log_keep, rates.writes))
            )
            got_now, ours = titans_rule(
                q[:, :, now], k[:, :, now], v[:, :, now], rates_now, network, mini_batch, ours,
                Layout.dense(t, rows, 1, CPU),
            )  # fmt: skip
            torch.testing.assert_close(got_now[:, 0], want_now, rtol=1e-10, atol=1e-10)
            pieces.append(got_now)
        torch.testing.assert_close(torch.cat(pieces, 2), got, rtol=1e-10, atol=1e-10)
        for name in weights:
            torch.testing.assert_close(ours.weights[name], after.weights[name])


@pytest.mark.parametrize(
    "options",
    [{}, {"layers": 1}, {"layers": 3}, {"mini_batch": 64}],
    ids=["default", "one-layer", "three-layers", "long-mini-batch"],
)
def test_the_inner_loss_falls_on_a_zipf_text_at_the_starting_values(
    options: dict[str, Any],
) -> None:
    kind = memory_kind("titans")
    assert kind is not None
    attention = AttentionWeights(query_heads=2, kv_heads=2, head_dim=64)
    mixer: Any = kind.make(128, kind.options(options), attention, WINDOW)

    def loss(heads: Heads, memory: TitansMemory) -> Tensor:
        z = mixer.network.apply(heads.k, memory.weights)
        return 0.5 * (z - heads.v).square().sum(-1)

    losses = inner_losses(mixer, loss)
    # Words that come once in a while move it up and down, but never back.
    assert max(losses[1:]) < 0.7 * losses[0], losses
