"""The blockwise objective is the dense one, in value and gradient.

Letters: n positions, D hidden size, V vocabulary, k words kept of a prediction.
"""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from allmem.distill.config import Objective
from allmem.distill.losses import (
    LossSums,
    disagreement_weights,
    distillation_loss,
    forward_kl,
)
from allmem.distill.targets import (
    FullTarget,
    Target,
    TopTarget,
    log_probabilities,
    top_log_probs,
)
from allmem.errors import AllMemError

N, D, TEACHER_D, V = 13, 6, 4, 11
EXACT = {"rtol": 1e-12, "atol": 1e-13}
DIVERGENCES = ["forward_kl", "reverse_kl", "jsd"]


class WatchedHead(nn.Linear):
    """A frozen head that remembers how many positions it was given at most."""

    def __init__(self, size: int, vocabulary: int = V, dtype: torch.dtype = torch.float64) -> None:
        super().__init__(size, vocabulary, bias=False, dtype=dtype)
        nn.init.normal_(self.weight)
        self.requires_grad_(False)
        self.most = 0

    def forward(self, hidden: Tensor) -> Tensor:
        self.most = max(self.most, len(hidden))
        return super().forward(hidden)


def dense_divergence(p: Tensor, q: Tensor, objective: Objective) -> Tensor:
    """[n], times T²; p and q are probabilities [n, S] before their temperature."""
    p, q = ((x.log() / objective.temperature).softmax(-1) for x in (p, q))
    beta = objective.jsd_beta
    mixed = beta * p + (1 - beta) * q
    kl = {
        "forward_kl": p * (p / q).log(),
        "reverse_kl": q * (q / p).log(),
        "jsd": beta * p * (p / mixed).log() + (1 - beta) * q * (q / mixed).log(),
    }[objective.divergence]
    return objective.temperature**2 * kl.sum(-1)


def bucketed(p: Tensor, ids: Tensor) -> Tensor:
    """[n, V] to [n, k + 1]: the words of ``ids`` and all others together."""
    kept = p.gather(1, ids)
    return torch.cat([kept, 1 - kept.sum(1, keepdim=True)], 1)


def values_and_gradient(sums: LossSums, leaf: Tensor) -> list[Tensor]:
    # A factor after the loss, as by an average.
    (sums.total / 3).backward()
    assert leaf.grad is not None
    return [sums.total.detach(), sums.kl, sums.ce, leaf.grad]


def dense_sums(kl: Tensor, ce: Tensor, objective: Objective, weights: Tensor | None) -> LossSums:
    each = objective.kl_weight * kl + objective.ce_weight * ce
    total = (each if weights is None else weights * each).sum()
    return LossSums(total, kl.detach().sum(), ce.detach().sum())


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"temperature": 2.5},
        {"kl_weight": 0.3, "ce_weight": 0.7},
        {"kl_weight": 0.0, "ce_weight": 1.0},
        {"weighted": True},
        {"temperature": 0.7, "ce_weight": 0.5, "jsd_beta": 0.2, "weighted": True},
    ],
    ids=["plain", "T2.5", "ce", "only-ce", "weighted", "all"],
)
@pytest.mark.parametrize("kind", ["full", "top-all"])
@pytest.mark.parametrize(("n", "block"), [(1, 4), (8, 4), (13, 5), (13, 100)])
def test_blocks_give_the_dense_objective_and_gradient(
    n: int, block: int, kind: str, choice: dict[str, Any], divergence: Any
) -> None:
    options = {name: value for name, value in choice.items() if name != "weighted"}
    objective = Objective(divergence, block=block, **options)
    teacher_head, head = WatchedHead(TEACHER_D), WatchedHead(D)
    teacher = torch.randn(n, TEACHER_D, dtype=torch.float64)
    student = torch.randn(n, D, dtype=torch.float64)
    labels = torch.randint(V, (n,))
    weights = torch.rand(n, dtype=torch.float64) if "weighted" in choice else None
    p = nn.functional.linear(teacher, teacher_head.weight).softmax(-1)
    target: Target = FullTarget(teacher, teacher_head)
    if kind == "top-all":
        ids = torch.rand(n, V).argsort(1)
        target = TopTarget(ids, p.gather(1, ids).log())

    leaf = student.clone().requires_grad_()
    found = values_and_gradient(
        distillation_loss(leaf, head, target, objective, labels, weights), leaf
    )

    leaf = student.clone().requires_grad_()
    q = nn.functional.linear(leaf, head.weight).softmax(-1)
    ce = nn.functional.nll_loss(q.log(), labels, reduction="none")
    dense = dense_sums(dense_divergence(p, q, objective), ce, objective, weights)
    expected = values_and_gradient(dense, leaf)
    torch.testing.assert_close(found, expected, **EXACT)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 2.0], ids=["T1", "T2"])
@pytest.mark.parametrize("k", [1, 4, V - 1])
def test_the_likeliest_words_and_the_rest_give_the_dense_loss_over_those(
    k: int, temperature: float, divergence: Any
) -> None:
    objective = Objective(divergence, temperature=temperature, block=5)
    head = WatchedHead(D)
    teacher, student = torch.randn(2, N, D, dtype=torch.float64).unbind()
    p = head(teacher).softmax(-1)
    ids = p.topk(k).indices

    leaf = student.clone().requires_grad_()
    target = TopTarget(ids.int(), p.gather(1, ids).log())
    found = values_and_gradient(distillation_loss(leaf, head, target, objective), leaf)

    leaf = student.clone().requires_grad_()
    q = head(leaf).softmax(-1)
    kl = dense_divergence(bucketed(p, ids), bucketed(q, ids), objective)
    dense = dense_sums(kl, torch.zeros_like(kl), objective, None)
    expected = values_and_gradient(dense, leaf)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("k", [4, V])
def test_what_is_compared_has_the_mass_1_however_it_was_rounded(k: int) -> None:
    p, q = torch.randn(2, N, V, dtype=torch.float64).log_softmax(-1).unbind()
    top = p.topk(k)
    stored = TopTarget(top.indices, top.values + 0.003)
    expected, found = stored.compared(slice(0, N), q if k == V else q - 0.002)
    for one in (expected, found):
        torch.testing.assert_close(one.exp().sum(1), torch.ones(N, dtype=one.dtype), **EXACT)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("sure", ["teacher", "student", "both"])
def test_a_rest_of_almost_nothing_keeps_values_and_gradients_finite(
    sure: str, divergence: Any
) -> None:
    """With a rest far below what fp32 can tell from 1."""
    head = WatchedHead(D, dtype=torch.float32)
    hidden = {name: torch.randn(N, D) for name in ("teacher", "student")}
    for name in hidden if sure == "both" else [sure]:
        hidden[name] *= 100
    target = TopTarget(*top_log_probs(hidden["teacher"], head, 3))
    leaf = hidden["student"].requires_grad_()
    sums = distillation_loss(leaf, head, target, Objective(divergence, block=5))
    sums.total.backward()
    assert leaf.grad is not None
    assert math.isfinite(sums.kl)
    assert sums.kl > -1e-5
    assert leaf.grad.isfinite().all()


def test_a_small_rest_of_the_student_has_an_exact_gradient() -> None:
    """1 minus the mass of the words would be 0 in fp32, or noise."""
    logits = torch.tensor([[20.0, 1.0, 0.0, -1.0]])
    target = TopTarget(torch.tensor([[0]]), torch.tensor([[0.9]]).log())
    gradients = []
    for dtype in (torch.float32, torch.float64):
        leaf = logits.clone().to(dtype).requires_grad_()
        distillation_loss(leaf, nn.Identity(), target, Objective()).total.backward()
        assert leaf.grad is not None
        gradients.append(leaf.grad.double())
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-12)
    # p's rest of 0.1, spread as the student spreads its own.
    expected = -0.1 * logits[0, 1:].double().softmax(0)
    torch.testing.assert_close(gradients[1][0, 1:], expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("length", [1, 13])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_forward_kl_is_the_dense_mean(masked: bool, length: int) -> None:
    teacher, student = torch.randn(2, 3, length, D, dtype=torch.float64).unbind()
    head = WatchedHead(D)
    mask = torch.rand(3, length) < 0.6 if masked else None
    if mask is not None:
        mask[0, 0] = True
    results = []
    for blockwise in (True, False):
        leaf = student.clone().requires_grad_()
        if blockwise:
            loss = forward_kl(teacher, leaf, head, mask, 5)
        else:
            p, q = (head(h).log_softmax(-1) for h in (teacher, leaf))
            kl = (p.exp() * (p - q)).sum(-1)
            loss = kl.mean() if mask is None else kl[mask].mean()
        (3 * loss).backward()
        results.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(results[0], results[1], **EXACT)


def test_no_head_reads_more_than_a_block() -> None:
    heads = [WatchedHead(D) for _ in range(5)]
    hidden = torch.randn(N, D, dtype=torch.float64)
    leaf = hidden.clone().requires_grad_()
    distillation_loss(leaf, heads[0], FullTarget(hidden, heads[1]), Objective(block=4))
    disagreement_weights(hidden, hidden, heads[2], 0.1, block=4)
    top_log_probs(hidden, heads[3], 2, block=4)
    forward_kl(hidden, leaf, heads[4], block=4)
    assert [head.most for head in heads] == [4] * 5


def test_half_precision_is_summed_in_fp32() -> None:
    teacher, student = torch.randn(2, 600, D).bfloat16().unbind()
    head = WatchedHead(D, dtype=torch.bfloat16)
    leaf = student.clone().requires_grad_()
    total = distillation_loss(leaf, head, FullTarget(teacher, head), Objective(block=64)).total
    (unscaled,) = torch.autograd.grad(total, leaf, retain_graph=True)
    factor = torch.tensor(1 / 600)
    (factor * total).backward()
    logits = [head(teacher).double(), head(student).double().requires_grad_()]
    p, q = (x.log_softmax(-1) for x in logits)
    kl = (p.exp() * (p - q)).sum()
    assert total.dtype == torch.float32
    torch.testing.assert_close(total.detach().double(), kl.detach(), rtol=1e-5, atol=0)
    # The head hands back bf16; nothing else may be that coarse.
    (outer,) = torch.autograd.grad(kl, logits[1])
    expected = (outer.bfloat16() @ head.weight).double() / 600
    assert leaf.grad is not None
    assert leaf.grad.dtype == torch.bfloat16
    torch.testing.assert_close(leaf.grad.double(), expected, rtol=2**-7, atol=1e-7)
    scaled = (unscaled.float() * factor).bfloat16()
    torch.testing.assert_close(leaf.grad, scaled, rtol=0, atol=0)


@pytest.mark.parametrize("student_dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("head_dtype", [torch.float32, torch.bfloat16], ids=["head32", "head16"])
@pytest.mark.parametrize("kind", ["full", "top"])
def test_autocast_changes_no_bit(
    kind: str, head_dtype: torch.dtype, student_dtype: torch.dtype
) -> None:
    head = WatchedHead(D, dtype=head_dtype)
    teacher, student = torch.randn(2, N, D).unbind()
    labels = torch.randint(V, (N,))
    objective = Objective("jsd", ce_weight=0.5, temperature=2.0, block=5)
    results = []
    for enabled in (False, True):
        leaf = student.clone().to(student_dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            weights = disagreement_weights(teacher, student, head, 0.1, block=5)
            top = top_log_probs(teacher, head, 4, block=5)
            target = FullTarget(teacher, head) if kind == "full" else TopTarget(*top)
            sums = distillation_loss(leaf, head, target, objective, labels, weights)
        assert sums.total.dtype == torch.float32
        results.append([*values_and_gradient(sums, leaf), weights, *top])
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["function", "module"])
def test_a_head_is_read_in_fp32_under_autocast(kind: str) -> None:
    linear = WatchedHead(D, dtype=torch.float32)
    head = linear if kind == "module" else lambda hidden: hidden @ linear.weight.mT
    hidden = torch.randn(N, D)
    with torch.autocast("cpu", torch.bfloat16):
        found = log_probabilities(head, hidden)
    expected = (hidden.double() @ linear.weight.double().mT).log_softmax(-1)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_no_gradient_reaches_teacher_head_or_weights() -> None:
    teacher, student = torch.randn(2, N, D).unbind()
    head = WatchedHead(D, dtype=torch.float32)
    others = [
        teacher.requires_grad_(),
        head.weight.requires_grad_(),
        torch.rand(N).requires_grad_(),
    ]
    target = FullTarget(teacher, head)
    sums = distillation_loss(student.requires_grad_(), head, target, Objective(), None, others[2])
    assert not sums.kl.requires_grad
    assert not sums.ce.requires_grad
    sums.total.backward()
    assert student.grad is not None
    assert [other.grad for other in others] == [None] * 3
    expected, found = target.compared(slice(0, 2), student[:2] @ torch.ones(D, V))
    assert (expected.requires_grad, found.requires_grad) == (False, True)


@pytest.mark.parametrize("kind", ["full", "top"])
def test_no_position_gives_zeros_that_are_connected(kind: str) -> None:
    head = WatchedHead(D, dtype=torch.bfloat16)
    weight = torch.randn(D, D, dtype=torch.bfloat16, requires_grad=True)
    hidden = torch.zeros(0, D, dtype=torch.bfloat16)
    top = TopTarget(*top_log_probs(hidden, head, 3))
    target: Target = FullTarget(hidden, head) if kind == "full" else top
    sums = distillation_loss(
        hidden @ weight,
        head,
        target,
        Objective(ce_weight=1.0),
        torch.zeros(0, dtype=torch.int64),
        disagreement_weights(hidden, hidden, head, 0.1),
    )
    assert (sums.total.item(), sums.kl.item(), sums.ce.item()) == (0, 0, 0)
    assert (sums.total.dtype, sums.kl.dtype) == (torch.float32, torch.float64)
    sums.total.backward()
    torch.testing.assert_close(weight.grad, torch.zeros_like(weight), rtol=0, atol=0)


@pytest.mark.parametrize("floor", [0.0, 0.25, 1.0])
def test_positions_weigh_what_the_window_gets_wrong(floor: float) -> None:
    head = WatchedHead(D)
    teacher, window = torch.randn(2, N, D, dtype=torch.float64).unbind()
    window[3] = teacher[3]
    found = disagreement_weights(teacher.requires_grad_(), window, head, floor, block=5)
    p, q = (head(h).log_softmax(-1) for h in (teacher.detach(), window))
    kl = (p.exp() * (p - q)).sum(-1)
    torch.testing.assert_close(found, floor + (1 - floor) * kl / kl.mean(), **EXACT)
    through_target = disagreement_weights(FullTarget(teacher, head), window, head, floor, block=5)
    torch.testing.assert_close(through_target, found, rtol=0, atol=0)
    assert not found.requires_grad
    assert math.isclose(found.mean(), 1)
    assert math.isclose(found[3], floor, abs_tol=1e-12)


def test_where_nothing_disagrees_all_weigh_the_same() -> None:
    hidden = torch.randn(N, D).bfloat16()
    found = disagreement_weights(hidden, hidden, WatchedHead(D), 0.1, block=5)
    torch.testing.assert_close(found, torch.ones(N), rtol=0, atol=0)


def test_rounding_makes_no_weight_less_than_the_floor() -> None:
    head = WatchedHead(D, vocabulary=300, dtype=torch.float32)
    hidden = torch.randn(100, D)
    found = disagreement_weights(hidden, hidden * (1 + 1e-6), head, 0.1)
    assert (found >= 0.1).all()


def test_the_stored_words_are_the_likeliest_and_rounded_only() -> None:
    head = WatchedHead(D, vocabulary=300, dtype=torch.float32)
    hidden = torch.randn(N, D)
    ids, log_probs = top_log_probs(hidden, head, 7, block=5)
    assert (ids.dtype, log_probs.dtype) == (torch.int32, torch.float16)
    expected = head(hidden).log_softmax(-1).topk(7)
    torch.testing.assert_close(ids.long(), expected.indices)
    torch.testing.assert_close(log_probs.float(), expected.values, rtol=2**-11, atol=0)
    # A student that predicts the same has nothing to learn from what was stored.
    sums = distillation_loss(hidden, head, TopTarget(ids, log_probs), Objective())
    assert abs(sums.kl / N) < 1e-5
    assert top_log_probs(1e5 * hidden, head, 7)[1].isfinite().all()


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"divergence": "forward"}, "unknown divergence 'forward'; did you mean 'forward_kl'?"),
        ({"divergence": "jsd", "jsd_beta": 1.0}, "jsd_beta = 1.0 must lie between 0 and 1"),
        ({"jsd_beta": math.nan}, "jsd_beta = nan"),
        ({"kl_weight": -1.0}, "kl_weight = -1.0 must be 0 or more"),
        ({"ce_weight": math.inf}, "ce_weight = inf"),
        ({"kl_weight": 0.0}, "leave nothing to learn"),
        ({"temperature": 0.0}, "temperature = 0.0 must be positive"),
        ({"block": 0}, "block = 0 must be a whole number"),
        ({"block": 2.5}, "block = 2.5"),
    ],
)
def test_a_wrong_objective_is_an_error(choice: dict[str, Any], message: str) -> None:
    with pytest.raises(AllMemError, match=message.replace("?", r"\?")):
        Objective(**choice)


def test_an_objective_survives_json() -> None:
    objective = Objective("jsd", 0.3, 0.5, 0.5, 2.0, 64)
    assert Objective(**json.loads(json.dumps(dataclasses.asdict(objective)))) == objective


def test_wrong_input_is_an_error() -> None:
    head, hidden = WatchedHead(D), torch.randn(N, D)
    target, objective = FullTarget(hidden, head), Objective(ce_weight=0.1)
    with pytest.raises(AllMemError, match=r"ce_weight = 0\.1 needs labels"):
        distillation_loss(hidden, head, target, objective)
    with pytest.raises(AllMemError, match="labels has 5 positions and the student 13"):
        distillation_loss(hidden, head, target, objective, torch.zeros(5, dtype=torch.int64))
    with pytest.raises(AllMemError, match="target has 13 positions and the student 0"):
        distillation_loss(hidden[:0], head, target, Objective())
    with pytest.raises(AllMemError, match="weights has 2 positions"):
        distillation_loss(hidden, head, target, Objective(), weights=torch.ones(2))
    with pytest.raises(AllMemError, match="knows 12 words and the student's 11"):
        distillation_loss(hidden, head, FullTarget(hidden, WatchedHead(D, 12)), Objective())
    stored = TopTarget(torch.zeros(N, 12, dtype=torch.int32), torch.zeros(N, 12))
    with pytest.raises(AllMemError, match="12 words are stored"):
        distillation_loss(hidden, head, stored, Objective())
    with pytest.raises(AllMemError, match=r"ids are \[2, 3\] and log_probs \[2, 4\]"):
        TopTarget(torch.zeros(2, 3, dtype=torch.int32), torch.zeros(2, 4))
    with pytest.raises(AllMemError, match="floor = -1"):
        disagreement_weights(hidden, hidden, head, -1)
    with pytest.raises(AllMemError, match="target has 13 positions and the student 4"):
        disagreement_weights(hidden, hidden[:4], head, 0.1)
    with pytest.raises(AllMemError, match="k = 12 is more than the 11 words"):
        top_log_probs(hidden, head, 12)
    with pytest.raises(AllMemError, match="k = 0"):
        top_log_probs(hidden, head, 0)
    with pytest.raises(AllMemError, match="counts no position"):
        forward_kl(torch.zeros(1, 0, D), torch.zeros(1, 0, D), head)
