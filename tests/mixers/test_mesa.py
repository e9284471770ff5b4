"""The optimal linear memory: the contract, least squares, and flash-linear-attention's code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from allmem.config import WindowConfig
from allmem.errors import AllMemError
from allmem.memory.projections import AttentionWeights
from allmem.mixers.base import Mixer
from allmem.mixers.conformance import MixerConformance
from allmem.mixers.mesa import MesaOptions, mesa_rule
from allmem.mixers.registry import memory_kind
from tests.mixers.others import naive

HIDDEN = 24
ATTENTION = AttentionWeights(query_heads=4, kv_heads=2, head_dim=8)
SMALL: dict[str, Any] = {"key_dim": 6, "value_dim": 5, "block": 5, "iterations": 7}

CASES: dict[str, dict[str, Any]] = {
    "solved": {},
    "iterations-of-the-paper": {"iterations": 30},
    "cut-short": {"iterations": 2},
    "exact": {"solver": "exact"},
    "plain": {"conv": 0, "activation": False, "qk_norm": "rms", "gate": "none"},
    "evicted": {"write_scope": "evicted"},
    "evicted-exact": {"write_scope": "evicted", "solver": "exact"},
}


class TestMesa(MixerConformance):
    """The contract, with every option."""

    hidden_size = HIDDEN
    options: dict[str, Any]

    @pytest.fixture(autouse=True, params=CASES.values(), ids=CASES.keys())
    def choose(self, request: pytest.FixtureRequest) -> None:
        self.options = request.param

    def make_mixer(self) -> Mixer:
        torch.manual_seed(1)
        kind = memory_kind("mesa")
        assert kind is not None
        options = kind.options({**SMALL, **self.options})
        return kind.make(HIDDEN, options, ATTENTION, WindowConfig(window=7, sinks=2))


R, H, N, D = 2, 3, 32, 8


def problem(dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Tensor]:
    """q, k, v, rates and decays of every token, and ridges."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    made = {
        "q": F.normalize(normal(R, H, N, D), dim=-1),
        "k": F.normalize(normal(R, H, N, D), dim=-1),
        "v": normal(R, H, N, D),
        "rate": normal(R, H, N).sigmoid(),
        "log_decay": F.logsigmoid(normal(R, H, N) + 2),
        "ridge": F.softplus(normal(H, D)) + 0.25,
    }
    return {name: t.to(dtype) for name, t in made.items()}


def read(
    p: dict[str, Tensor], iterations: int | None, block: int = 8, parts: tuple[int, ...] = (N,)
) -> tuple[Tensor, Tensor]:
    """The rule over a text read in parts."""
    state = p["q"].new_zeros(R, H, D, 2 * D)
    pieces = []
    for q, k, v, rate, log_decay in zip(
        *(p[name].split(parts, dim=2) for name in ("q", "k", "v", "rate", "log_decay")), strict=True
    ):
        y, state = mesa_rule(q, k, v, rate, log_decay, p["ridge"], state, block, iterations)
        pieces.append(y)
    return torch.cat(pieces, 2), state


def theirs(p: dict[str, Tensor]) -> list[Tensor]:
    """The arguments of flash-linear-attention's functions: tokens before heads."""
    q, k, v, g, b = (p[name].transpose(1, 2) for name in ("q", "k", "v", "log_decay", "rate"))
    return [q, k, v, g, p["ridge"], b]


def close(a: Tensor, b: Tensor, tolerance: float) -> None:
    assert float((a - b).norm() / b.norm()) < tolerance


@pytest.mark.parametrize("parts", [(N,), (13, N - 13), (20, *[1] * (N - 20))], ids=len)
@pytest.mark.parametrize("solver", ["cg", "exact"])
def test_the_rule_is_their_exact_solution(solver: str, parts: tuple[int, ...]) -> None:
    """``naive_mesa_net_exact``, prefill and token by token; they compute in fp32."""
    p = problem()
    y, state = read(p, None if solver == "exact" else 30, parts=parts)
    want, moments, written = naive("mesa_net").naive_mesa_net_exact(*theirs(p))
    close(y.transpose(1, 2), want, 1e-5)
    close(state, torch.cat([moments, written], -1), 1e-6)


@pytest.mark.parametrize("iterations", [1, 3, 30])
def test_the_iterations_are_theirs(iterations: int) -> None:
    """``naive_mesa_net_CG``, also where it stops early. It adds 1e-5 to what it divides by, so the
    queries, in which all is linear, are made long enough for that not to count."""
    p = problem()
    q, *others = theirs(p)
    want, moments, written = naive("mesa_net").naive_mesa_net_CG(
        1e4 * q, *others, chunk_size=8, max_CG_iteration=iterations
    )
    y, state = read(p, iterations)
    close(y.transpose(1, 2), want / 1e4, 1e-5)
    close(state, torch.cat([moments, written], -1), 1e-6)


def test_one_decoded_token_is_theirs() -> None:
    """``naive_mesa_net_decoding_one_step`` after a prefill. Their iterations start elsewhere than
    in their prefill, so they are compared where they end."""
    p = problem()
    y, after = read(p, 30, parts=(N - 1, 1))
    _, before = read(
        {n: t if n == "ridge" else t[:, :, : N - 1] for n, t in p.items()}, 30, 8, (N - 1,)
    )
    q, k, v, g, ridge, b = theirs(p)
    moments, written = before.split(D, -1)
    want, moments, written = naive("mesa_net").naive_mesa_net_decoding_one_step(
        1e4 * q[:, -1], k[:, -1], v[:, -1], g[:, -1], ridge, b[:, -1], moments, written
    )
    close(y[:, :, -1], want / 1e4, 1e-5)
    close(after, torch.cat([moments, written], -1), 1e-6)


@pytest.mark.parametrize("iterations", [None, 12], ids=["exact", "cg"])
def test_it_reads_with_the_least_squares_fit_to_what_was_written(iterations: int | None) -> None:
    """One head, one query: the minimiser of the weighted loss with its ridge, from torch's own
    least squares."""
    p = problem(torch.float64)
    y, _ = read(p, iterations)
    t, r, h = 20, 1, 2
    decay = p["log_decay"][r, h, : t + 1]
    weight = (decay.sum() - decay.cumsum(0)).exp() * p["rate"][r, h, : t + 1]
    k, v = p["k"][r, h, : t + 1], p["v"][r, h, : t + 1]
    # |diag(w)^(1/2) (k M - v)|^2 + |diag(l)^(1/2) M|^2
    rows = torch.cat([weight.sqrt()[:, None] * k, p["ridge"][h].sqrt().diag()])
    targets = torch.cat([weight.sqrt()[:, None] * v, torch.zeros(D, D, dtype=torch.float64)])
    fit = torch.linalg.lstsq(rows, targets).solution
    close(y[r, h, t], p["q"][r, h, t] @ fit, 1e-9)


@pytest.mark.parametrize("block", [1, 3, 64])
def test_the_block_changes_nothing(block: int) -> None:
    p = problem(torch.float64)
    for iterations in (None, 3):
        close(read(p, iterations, block)[0], read(p, iterations)[0], 1e-12)


def test_strong_forgetting_and_empty_queries_stay_finite() -> None:
    p = problem()
    p["log_decay"] = torch.full_like(p["log_decay"], -1e4)
    p["q"][:, :, 3] = 0
    for tensor in p.values():
        tensor.requires_grad_()
    y, state = read(p, 30)
    (y.sum() + state.sum()).backward()
    assert not bool(y[:, :, 3].any())
    for tensor in (y, *(t.grad for t in p.values())):
        assert tensor is not None
        assert bool(torch.isfinite(tensor).all())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"iterations": 0}, "iterations = 0 must be a positive"),
        ({"solver": "exakt"}, "did you mean 'exact'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(AllMemError, match=words):
        MesaOptions.from_dict(options)
