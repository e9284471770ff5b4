"""The rules behind the linear memories: against the plain references of flash-linear-attention, and
where numbers are extreme."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from allmem.mixers.recurrence import delta_rule, linear_rule
from tests.mixers.others import naive

R, H, N, D, V = 2, 3, 23, 8, 6
Inputs = dict[str, Tensor]


def inputs(dtype: torch.dtype = torch.float32, tokens: int = N) -> Inputs:
    """[R, H, N, ...], keys and queries of length one, a state before the first token."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(R, H, *shape, generator=draw, dtype=torch.float64).to(dtype)

    return {
        "q": F.normalize(normal(tokens, D), dim=-1),
        "k": F.normalize(normal(tokens, D), dim=-1),
        "v": normal(tokens, V),
        "rate": normal(tokens).sigmoid(),
        "head": F.logsigmoid(normal(tokens) + 1),
        "channel": F.logsigmoid(normal(tokens, D) + 1),
        "state": normal(D, V),
    }


def ours(
    rule: str,
    decay: str | None,
    given: Inputs,
    block: int = 5,
    narrow: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    q, k, v = given["q"] * D**-0.5, given["k"], given["v"]
    log_decay = given[decay] if decay else None
    if rule == "delta":
        return delta_rule(q, k, v, given["rate"], log_decay, given["state"], block, narrow)
    return linear_rule(q, k, v, log_decay, given["state"], block, narrow)


def token_by_token(rule: str, decay: str | None, given: Inputs) -> tuple[Tensor, Tensor]:
    state, read = given["state"], []
    for t in range(given["q"].shape[2]):
        now = {name: x if name == "state" else x[:, :, t : t + 1] for name, x in given.items()}
        y, state = ours(rule, decay, {**now, "state": state})
        read.append(y)
    return torch.cat(read, 2), state


# What fla calls them: [R, N, H, ...], and a scale of d^-1/2 of their own.


def fla_linear(given: Inputs, decay: str | None) -> tuple[Tensor, Tensor]:
    q, k, v = (given[name].transpose(1, 2) for name in ("q", "k", "v"))
    if decay == "channel":
        gates = given["channel"].transpose(1, 2)
        run: Callable[..., Any] = naive("gla").naive_recurrent_gla
        y, state = run(q, k, v, gates, given["state"], output_final_state=True)
    else:
        gates = given["head"].transpose(1, 2) if decay else q.new_zeros(q.shape[:3])
        run = naive("simple_gla").naive_recurrent_simple_gla
        y, state = run(q, k, v, gates, initial_state=given["state"])
    return y.transpose(1, 2), state


def fla_delta(given: Inputs, decay: str | None) -> tuple[Tensor, Tensor]:
    if decay is None:
        run: Callable[..., Any] = naive("delta_rule").delta_rule_recurrence
        return run(given["q"], given["k"], given["v"], given["rate"], given["state"])
    q, k, v, rate, gates = (given[name].transpose(1, 2) for name in ("q", "k", "v", "rate", decay))
    if decay == "head":
        run = naive("gated_delta_rule").naive_recurrent_gated_delta_rule
    else:
        run = naive("kda").naive_recurrent_kda
    y, state = run(
        q=q, k=k, v=v, beta=rate, g=gates, initial_state=given["state"], output_final_state=True
    )
    return y.transpose(1, 2), state


RULES = [
    pytest.param(rule, decay, id=f"{rule}-{decay}")
    for rule in ("linear", "delta")
    for decay in (None, "head", "channel")
]


@pytest.mark.parametrize("read", [ours, token_by_token], ids=["prefill", "decode"])
@pytest.mark.parametrize(("rule", "decay"), RULES)
def test_the_rules_are_those_of_fla(
    rule: str, decay: str | None, read: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    """To 2e-6 in fp32, which is what the references compute in."""
    given = inputs()
    expected = (fla_delta if rule == "delta" else fla_linear)(given, decay)
    torch.testing.assert_close(read(rule, decay, given), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("block", [1, 4, 16, 64])
@pytest.mark.parametrize(("rule", "decay"), RULES)
def test_the_block_changes_nothing(rule: str, decay: str | None, block: int) -> None:
    given = inputs(torch.float64)
    expected = token_by_token(rule, decay, given)
    torch.testing.assert_close(ours(rule, decay, given, block), expected, rtol=0, atol=1e-12)


# Extremes: fp32 in one block of 64 against float64 token by token


def wide(given: Inputs) -> Inputs:
    return {name: x.double() for name, x in given.items()}


@pytest.mark.parametrize("strongest", [1.0, 30.0, 1e3, 1e30, torch.inf])
@pytest.mark.parametrize(("rule", "decay"), [p for p in RULES if p.values[1]])
def test_weak_decays_after_strong_ones_keep_their_precision(
    rule: str, decay: str, strongest: float
) -> None:
    given = inputs(tokens=64)
    # A third of the decays forget everything; the others hardly anything.
    weak = -1e-3 * given[decay].abs()
    given[decay] = torch.where(given[decay] < -0.4, torch.tensor(-strongest), weak)
    expected = token_by_token(rule, decay, wide(given))
    for got, right in zip(ours(rule, decay, given, 64), expected, strict=True):
        torch.testing.assert_close(got.double(), right, rtol=0, atol=3e-6)


@pytest.mark.parametrize("strongest", [1e3, torch.inf])
@pytest.mark.parametrize(("rule", "decay"), [p for p in RULES if p.values[1]])
def test_gradients_stay_finite_however_much_is_forgotten(
    rule: str, decay: str, strongest: float
) -> None:
    given = inputs(tokens=40)
    given[decay] = torch.where(given[decay] < -0.4, torch.tensor(-strongest), given[decay])
    leaves = [x.requires_grad_() for x in given.values()]
    y, state = ours(rule, decay, given, 64)
    gradients = torch.autograd.grad(y.sum() + state.sum(), leaves, allow_unused=True)
    for gradient in gradients:
        assert gradient is None or bool(gradient.isfinite().all())


@pytest.mark.parametrize("decay", [None, "head", "channel"])
def test_a_long_text_of_nearly_one_key_stays_bounded(decay: str | None) -> None:
    """The delta rule at its most ill-conditioned: every token corrects what the last one wrote."""
    given = inputs(tokens=512)
    nearly = given["k"][:, :, :1] + 1e-3 * given["k"]
    signs = torch.where(given["rate"][..., None] > 0.5, 1.0, -1.0)
    given["k"] = F.normalize(nearly, dim=-1) * signs
    given["rate"] = torch.full_like(given["rate"], 0.9999)
    given["head"], given["channel"] = (1e-4 * given[name] for name in ("head", "channel"))
    expected = token_by_token("delta", decay, wide(given))
    got = ours("delta", decay, given, 64)
    assert float(expected[0].abs().max()) < 10
    torch.testing.assert_close(got[0].double(), expected[0], rtol=0, atol=3e-5)


@pytest.mark.parametrize(("rule", "decay"), RULES)
def test_no_tokens_leave_the_state_as_it_is(rule: str, decay: str | None) -> None:
    given = inputs(tokens=0)
    y, state = ours(rule, decay, given)
    assert y.shape == (R, H, 0, V)
    assert torch.equal(state, given["state"])
