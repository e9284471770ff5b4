"""Products of bfloat16 inputs: what rounding does to reads, writes and outer gradients, against the
oracle in float64 on the same inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from allmem.config import MemoryConfig
from allmem.errors import AllMemError
from allmem.layout import Layout
from allmem.memory import inner_loop as module
from allmem.memory.inner_loop import inner_loop, use_products
from allmem.memory.naive import naive_inner_loop
from allmem.memory.state import MemoryState
from tests.memory.test_inner_loop import CPU, problem

CONFIG = MemoryConfig(heads=2, head_dim=24, width=32, chunk=32)
TOKENS = 4 * 32 + 20
OTHERS: dict[str, dict[str, Any]] = {
    "default": {},
    "dot": {"loss": "dot"},
    "linear": {"network": "linear", "width": 24},
    "no-residual": {"residual": False},
    "post-update": {"norm": "post_update"},
}


@pytest.fixture(autouse=True)
def small_products_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WORK", 1)


def rounded(p: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same inputs in bfloat16 (rates and F_0 in fp32) and in float64."""
    low: dict[str, Any] = {n: p[n].detach().bfloat16() for n in ("q", "k", "v")}
    low |= {n: p[n].detach().float() for n in ("eta", "beta")}
    low["initial"] = {n: w.detach().float() for n, w in p["initial"].items()}
    high = {n: t.double() for n, t in low.items() if n != "initial"}
    high["initial"] = {n: w.double() for n, w in low["initial"].items()}
    for made in (low, high):
        for leaf in leaves(made):
            leaf.requires_grad_()
    return low, high


def leaves(p: dict[str, Any]) -> list[Tensor]:
    return [*(p[n] for n in ("q", "k", "v", "eta", "beta")), *p["initial"].values()]


def run(p: dict[str, Any], config: MemoryConfig, cut: int = 77) -> tuple[Tensor, MemoryState]:
    """In two calls, of which the first ends within a chunk."""
    state, read = MemoryState.begin(p["initial"], 2, config.momentum), []
    for begin, end in ((0, cut), (cut, TOKENS)):
        parts = [p[n][:, begin:end] for n in ("q", "k", "v", "eta", "beta")]
        layout = Layout.dense(begin, 2, end - begin, CPU)
        y, state = inner_loop(*parts, state, p["initial"], layout, config)
        read.append(y)
    return torch.cat(read, 1), state


def error(got: Tensor, expected: Tensor) -> float:
    """Relative, over everything."""
    return float(((got.double() - expected).norm() / expected.norm()).detach())


@pytest.mark.parametrize("options", OTHERS.values(), ids=OTHERS.keys())
def test_rounding_costs_little(options: dict[str, Any]) -> None:
    """Reads to 1 % (the rounding of q and of what is read makes 0.3 % of it), what was written to
    2 %, outer gradients to 3 %; with products in fp32 a tenth of that at most."""
    config = CONFIG.replace(**options)
    low, high = rounded(problem(config, 2, TOKENS))
    want, weights, _ = naive_inner_loop(*leaves(high)[:5], high["initial"], config)
    probe = torch.randn(want.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    expected = torch.autograd.grad((want * probe).sum(), leaves(high))
    for products, share in (("narrow", 1.0), ("wide", 0.1)):
        with use_products(products):
            got, state = run(low, config)
            found = torch.autograd.grad((got.double() * probe).sum(), leaves(low))
        assert got.dtype == torch.bfloat16
        assert state.weights["down"].dtype == torch.float32
        # What is read is rounded in both.
        assert error(got, want) < max(0.01 * share, 0.003)
        for name, start in high["initial"].items():
            change = torch.stack([row[name] for row in weights]) - start
            assert error(state.weights[name] - low["initial"][name], change) < 0.02 * share, name
        for gradient, right in zip(found, expected, strict=True):
            assert error(gradient, right) < max(0.03 * share, 0.005)
        with torch.no_grad(), use_products(products):
            plain, _ = run(low, config)
        assert error(plain, got.double()) < 0.01


def test_products_are_narrow_where_inputs_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """And where there are tokens enough."""
    seen: list[torch.dtype] = []
    step = module.MemoryNetwork.step

    def watched(self: Any, q: Tensor, *rest: Any) -> Any:
        seen.append(q.dtype)
        return step(self, q, *rest)

    monkeypatch.setattr(module.MemoryNetwork, "step", watched)
    low, _ = rounded(problem(CONFIG, 2, TOKENS))
    with torch.no_grad():
        run(low, CONFIG)
        # 32, 32, 13 and 19, 32, 20 tokens: 13 are few.
        narrow = torch.bfloat16
        assert seen == [narrow, narrow, torch.float32, narrow, narrow, narrow]
        seen.clear()
        with use_products("wide"):
            run(low, CONFIG)
        assert set(seen) == {torch.float32}


def test_nothing_that_was_given_is_changed() -> None:
    """Without gradients, products are worked on in their place."""
    low, high = rounded(problem(CONFIG, 2, TOKENS))
    for given in (low, high):
        before = [leaf.detach().clone() for leaf in leaves(given)]
        with torch.no_grad():
            run(given, CONFIG)
        assert all(torch.equal(x, y) for x, y in zip(before, leaves(given), strict=True))


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(AllMemError, match=r"wdie.*wide"), use_products("wdie"):
        pass
