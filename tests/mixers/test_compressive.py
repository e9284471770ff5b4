"""Pooled keys and values: the contract, and their definition token by token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from allmem.config import WindowConfig
from allmem.errors import AllMemError
from allmem.layout import Layout
from allmem.memory.projections import AttentionWeights, Wanted
from allmem.mixers.attention import WindowMixer
from allmem.mixers.base import Mixer
from allmem.mixers.compressive import BLOCK, CompressiveMixer, CompressiveOptions
from allmem.mixers.conformance import MixerConformance, randomise
from allmem.mixers.evicted import EvictedMixer
from allmem.mixers.layer import LayerMixer
from allmem.mixers.registry import memory_kind
from tests.mixers.test_conformance import HIDDEN, attention_mixer

CPU = torch.device("cpu")
ATTENTION = AttentionWeights(query_heads=4, kv_heads=2, head_dim=8)
# Small, so that the few tokens of which the suite takes gradients fill several groups.
WINDOW = WindowConfig(window=4, sinks=1)
SMALL: dict[str, Any] = {"key_dim": 6, "value_dim": 5, "rate": 3, "slots": 4, "rank": 3}
CASES: dict[str, dict[str, Any]] = {
    "mean": {"write_scope": "all"},
    "max": {"write_scope": "all", "pool": "max"},
    "conv": {"write_scope": "all", "pool": "conv"},
    "evicted": {},
    "evicted-max": {"pool": "max"},
    "evicted-conv": {"pool": "conv"},
    "not-pooled": {"rate": 1},
    "a-group-as-long-as-can-be": {"rate": 5},
    "two-slots": {"slots": 2, "rate": 2},
    "many-slots": {"slots": 40, "write_scope": "all"},
    "like-the-others": {"qk_norm": "l2", "activation": True, "projections": "lowrank"},
    "plain": {"qk_norm": "none", "conv": 0, "gate": "none"},
}


def make(window: WindowConfig = WINDOW, **options: Any) -> Mixer:
    torch.manual_seed(1)
    kind = memory_kind("compressive")
    assert kind is not None
    return kind.make(HIDDEN, kind.options({**SMALL, **options}), ATTENTION, window)


class TestCompressive(MixerConformance):
    """The contract, with every option."""

    hidden_size = HIDDEN
    counts_flops = False
    options: dict[str, Any]

    @pytest.fixture(autouse=True, params=CASES.values(), ids=CASES.keys())
    def choose(self, request: pytest.FixtureRequest) -> None:
        self.options = request.param

    def make_mixer(self) -> Mixer:
        return make(**self.options)


class TestSharedProjections(MixerConformance):
    """The contract beside an attention whose projections it shares."""

    hidden_size = HIDDEN
    counts_flops = False

    def make_mixer(self) -> Mixer:
        memory = make(projections="shared", write_scope="all")
        assert memory.wants == Wanted.FEATURES
        return LayerMixer(attention_mixer(WindowMixer, WINDOW), memory)


def definition(
    q: Tensor, k: Tensor, v: Tensor, first: int, lag: int, mixer: CompressiveMixer, head: int
) -> Tensor:
    """What every token reads, one by one: q and k [N, d], v [N, dv] of one head.

    Args:
        first: the first token that is written; the others before it never are.
        lag: tokens after which a token is written.
    """
    options = mixer.options
    read = torch.zeros_like(v)
    for t in range(len(q)):
        written = list(range(first, t - lag + 1))
        groups = [
            written[i : i + options.rate]
            for i in range(0, len(written) - options.rate + 1, options.rate)
        ][-options.slots :]
        if not groups:
            continue
        keys, values = [], []
        for group in groups:
            for x, found in ((k, keys), (v, values)):
                if options.pool == "max":
                    found.append(x[group].max(0).values)
                elif options.pool == "mean":
                    found.append(sum(x[j] for j in group) / len(group))
                else:
                    taps = mixer.pool_keys if x is k else mixer.pool_values
                    found.append(sum(taps[head, i] * x[j] for i, j in enumerate(group)))
        scores = torch.stack(keys) @ q[t] / q.shape[1] ** 0.5
        weights = scores.exp() / scores.exp().sum()
        read[t] = weights @ torch.stack(values)
    return read


@pytest.mark.parametrize("pool", ["mean", "max", "conv"])
@pytest.mark.parametrize("scope", ["all", "evicted"])
def test_the_mixer_computes_the_definition(pool: str, scope: str) -> None:
    """float64, 1e-12; heads, projections, norms, sinks and window written out."""
    mixer = make(pool=pool, write_scope=scope, conv=0, gate="none").double()
    randomise(mixer)
    length = 41
    x = torch.randn(1, length, HIDDEN, dtype=torch.float64)
    y, _ = mixer(x, mixer.init_state(1, x.dtype, CPU), Layout.dense(0, 1, length, CPU))

    inner = mixer.memory if isinstance(mixer, EvictedMixer) else mixer
    assert isinstance(inner, CompressiveMixer)
    # A token is written in time for its group to be full when the window loses its first one.
    first, lag = (0, 0) if scope == "all" else (WINDOW.sinks, WINDOW.window - 3 + 1)
    projections, shell = inner.shell.projections, inner.shell
    heads = []
    for h in range(shell.heads):
        keys = slice(h * shell.key_dim, (h + 1) * shell.key_dim)
        values = slice(h * shell.value_dim, (h + 1) * shell.value_dim)

        def normed(a: Tensor, scale: Tensor) -> Tensor:
            return a / (a.square().mean(-1, keepdim=True) + 1e-6).sqrt() * scale

        q = normed(x[0] @ projections.q.weight[keys].T, shell.q_norm.weight[h])
        k = normed(x[0] @ projections.k.weight[keys].T, shell.k_norm.weight[h])
        read = definition(q, k, x[0] @ projections.v.weight[values].T, first, lag, inner, h)
        heads.append(normed(read, shell.o_norm.weight[h]))
    expected = torch.cat(heads, 1) @ projections.o.weight.T
    assert torch.allclose(y[0], expected, rtol=0, atol=1e-12)
    assert bool(y[0, -1].any())


def test_an_evicted_token_is_never_in_no_store() -> None:
    """The last token that the window loses is in a pair that can be read: without its group's
    lag it would wait in the open group."""
    for rate in (1, 2, 3, 4, 5):
        mixer = make(rate=rate)
        for length in range(1, 40):
            x = torch.randn(1, length, HIDDEN)
            _, state = mixer(x, mixer.init_state(1, x.dtype, CPU), Layout.dense(0, 1, length, CPU))
            readable = int(state.memory.written[0]) // rate * rate + WINDOW.sinks
            lost = length - WINDOW.window
            assert readable >= lost


@pytest.mark.parametrize("length", [BLOCK - 1, BLOCK, 2 * BLOCK + 5])
def test_long_calls_are_computed_in_blocks(length: int) -> None:
    mixer = make(write_scope="all", slots=7).double()
    randomise(mixer)
    x = torch.randn(2, length, HIDDEN, dtype=torch.float64)
    with torch.no_grad():
        whole, _ = mixer(x, mixer.init_state(2, x.dtype, CPU), Layout.dense(0, 2, length, CPU))
        state, pieces = mixer.init_state(2, x.dtype, CPU), []
        for first in range(0, length, 37):
            piece = x[:, first : first + 37]
            y, state = mixer(piece, state, Layout.dense(first, 2, piece.shape[1], CPU))
            pieces.append(y)
    assert torch.allclose(torch.cat(pieces, 1), whole, rtol=0, atol=1e-12)


def test_gradients_reach_tokens_of_earlier_blocks() -> None:
    mixer = make(write_scope="all", slots=40).double()
    randomise(mixer)
    x = torch.randn(1, BLOCK + 9, HIDDEN, dtype=torch.float64, requires_grad=True)
    y, _ = mixer(x, mixer.init_state(1, x.dtype, CPU), Layout.dense(0, 1, x.shape[1], CPU))
    (gradient,) = torch.autograd.grad(y[:, -1].sum(), x)
    # 40 pairs of 3, and 3 taps before them; the last token is the first of an open group.
    reach = (BLOCK + 9) // 3 * 3 - 40 * 3 - 3
    assert not bool(gradient[0, :reach].any())
    assert bool(gradient[0, reach:-4].any(1).all())


@pytest.mark.parametrize("pool", ["mean", "max", "conv"])
def test_what_was_learned_is_carried_into_another_text(pool: str) -> None:
    """Pairs stay, and the other text's groups begin with its own first token."""
    mixer = make(write_scope="all", pool=pool).double()
    randomise(mixer)
    old, new = torch.randn(2, 1, 7, HIDDEN, dtype=torch.float64)

    def start() -> Any:
        return mixer.init_state(1, old.dtype, CPU)

    with torch.no_grad():
        _, learned = mixer(old, start(), Layout.dense(0, 1, 7, CPU))
        before = learned.clone()
        layout = Layout.dense(0, 1, 3, CPU)
        _, alone = mixer(new[:, :3], start(), layout)
        _, after = mixer(new[:, :3], mixer.carry(learned, start()), layout)
    for name in ("keys", "values"):
        assert torch.equal(getattr(after, name)[:, :, :2], getattr(before, name)[:, :, :2])
        assert torch.equal(getattr(after, name)[:, :, 2], getattr(alone, name)[:, :, 0])
    assert after.written.tolist() == [9]


@pytest.mark.parametrize("tokens", [1, 2, 3, 11, 12, 13, 50])
def test_flops_count_the_pairs_that_are_seen(tokens: int) -> None:
    mixer = make(write_scope="all")
    assert isinstance(mixer, CompressiveMixer)
    pairs = sum(min(t // 3, 4) for t in range(1, tokens + 1))
    assert mixer.flops_by_part(tokens)["memory read"] == 2 * pairs * 2 * (6 + 5)


def test_half_precision_reads_what_it_keeps() -> None:
    """In bf16 too a text in one call and in several is the same: pairs are rounded before they are
    read."""
    mixer = make(write_scope="all", conv=0).bfloat16()
    x = torch.randn(1, 30, HIDDEN).bfloat16()
    with torch.no_grad():
        _, state = mixer(x[:, :17], mixer.init_state(1, x.dtype, CPU), Layout.dense(0, 1, 17, CPU))
        again, _ = mixer(x[:, 17:], state, Layout.dense(17, 1, 13, CPU))
        whole, _ = mixer(x, mixer.init_state(1, x.dtype, CPU), Layout.dense(0, 1, 30, CPU))
    assert state.keys.dtype == torch.bfloat16
    assert state.open_keys.dtype == torch.float32
    assert torch.allclose(again.float(), whole[:, 17:].float(), rtol=0, atol=1e-2)


def test_bad_options_are_refused() -> None:
    with pytest.raises(AllMemError, match=r"pool.*'maen'.*mean"):
        CompressiveOptions(pool="maen")  # type: ignore[arg-type]
    with pytest.raises(AllMemError, match="rate = 0"):
        CompressiveOptions(rate=0)
    with pytest.raises(AllMemError, match="slots = -1"):
        CompressiveOptions(slots=-1)
    with pytest.raises(AllMemError, match=r"in chunks .* 'shared' cannot be had with it"):
        make(projections="shared")
    with pytest.raises(AllMemError, match="window = 4 is smaller than the 5 tokens"):
        make(rate=6)
