"""Infini-attention's memory: the contract, and the paper's equations written out."""

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
from allmem.mixers.conformance import MixerConformance, randomise
from allmem.mixers.infini import InfiniMemory, InfiniMixer, InfiniOptions, infini_rule
from allmem.mixers.layer import LayerMixer
from allmem.mixers.registry import memory_kind
from tests.mixers.test_conformance import WINDOW, attention_mixer

HIDDEN = 24
ATTENTION = AttentionWeights(query_heads=4, kv_heads=2, head_dim=8)
CHUNK = 5
SMALL: dict[str, Any] = {"key_dim": 6, "value_dim": 5, "chunk": CHUNK, "rank": 3}
CPU = torch.device("cpu")
CASES: dict[str, dict[str, Any]] = {
    "delta": {},
    "linear": {"update": "linear"},
    "no-head-gate": {"head_gate": False},
    "chunk-of-one": {"chunk": 1},
    "chunk-as-long-as-window": {"chunk": 7},
    "unnormalised": {"qk_norm": "none", "conv": 0, "gate": "none"},
    "like-the-others": {"qk_norm": "l2", "activation": True, "projections": "lowrank"},
    "evicted": {"write_scope": "evicted"},
    "evicted-linear": {"write_scope": "evicted", "update": "linear", "chunk": 7},
}


def make(**options: Any) -> Mixer:
    torch.manual_seed(1)
    kind = memory_kind("infini")
    assert kind is not None
    chosen = kind.options({**SMALL, **options})
    return kind.make(HIDDEN, chosen, ATTENTION, WindowConfig(window=7, sinks=2))


class TestInfini(MixerConformance):
    """The contract, with every option."""

    hidden_size = HIDDEN
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
        memory = make(projections="shared")
        assert memory.wants == Wanted.FEATURES
        return LayerMixer(attention_mixer(WindowMixer, WINDOW), memory)


def sigma(a: Tensor) -> Tensor:
    """ELU(a) + 1, section 2.1.2 of the paper."""
    return torch.where(a > 0, a + 1, a.exp())


def paper_linear(q: Tensor, k: Tensor, v: Tensor, segment: int) -> Tensor:
    """Equations 2 to 4 without a memory: token t reads, in one weighted mean, all tokens of the
    segments before its own. q, k [N, d], v [N, dv]."""
    read = torch.zeros_like(v)
    for t in range(len(q)):
        past = t // segment * segment
        weights = sigma(k[:past]) @ sigma(q[t])
        if past:
            read[t] = weights @ v[:past] / weights.sum()
    return read


def paper_delta(q: Tensor, k: Tensor, v: Tensor, segment: int) -> Tensor:
    """Equations 3 to 5, segment by segment, with M_0 = z_0 = 0."""
    read = torch.zeros_like(v)
    matrix, z = torch.zeros(k.shape[1], v.shape[1]).to(v), torch.zeros(k.shape[1]).to(v)
    for first in range(0, len(q), segment):
        now = slice(first, min(first + segment, len(q)))
        values = v[now]
        if first:
            read[now] = sigma(q[now]) @ matrix / (sigma(q[now]) @ z)[:, None]
            values = values - sigma(k[now]) @ matrix / (sigma(k[now]) @ z)[:, None]
        matrix = matrix + sigma(k[now]).T @ values
        z = z + sigma(k[now]).sum(0)
    return read


@pytest.mark.parametrize("update", ["linear", "delta"])
@pytest.mark.parametrize("length", [4, 5, 23])
def test_the_mixer_computes_the_papers_equations(update: str, length: int) -> None:
    """float64, 1e-12; heads, projections, norms and head gate written out."""
    mixer = make(update=update, conv=0, gate="none").double()
    randomise(mixer)
    assert isinstance(mixer, InfiniMixer)
    x = torch.randn(1, length, HIDDEN, dtype=torch.float64)
    y, _ = mixer(x, mixer.init_state(1, x.dtype, CPU), Layout.dense(0, 1, length, CPU))

    projections, shell = mixer.shell.projections, mixer.shell
    oracle = paper_linear if update == "linear" else paper_delta
    heads = []
    for h in range(shell.heads):
        keys = slice(h * shell.key_dim, (h + 1) * shell.key_dim)
        values = slice(h * shell.value_dim, (h + 1) * shell.value_dim)

        def normed(a: Tensor, scale: Tensor) -> Tensor:
            return a / (a.square().mean(-1, keepdim=True) + 1e-6).sqrt() * scale

        q = normed(x[0] @ projections.q.weight[keys].T, shell.q_norm.weight[h])
        k = normed(x[0] @ projections.k.weight[keys].T, shell.k_norm.weight[h])
        read = oracle(q, k, x[0] @ projections.v.weight[values].T, CHUNK)
        gate = 1 / (1 + (-mixer.head_gate[h]).exp())
        heads.append(normed(read, shell.o_norm.weight[h]) * gate)
    expected = torch.cat(heads, 1) @ projections.o.weight.T
    assert torch.allclose(y[0], expected, rtol=0, atol=1e-12)
    assert bool(y[0, CHUNK:].any()) == (length > CHUNK)


@pytest.mark.parametrize("update", ["linear", "delta"])
@pytest.mark.parametrize("calls", [[23], [1] * 23, [7, 9, 7]], ids=["prefill", "decode", "mixed"])
def test_the_rule_equals_the_code_of_others(update: Any, calls: list[int]) -> None:
    """lucidrains' infini-transformer-pytorch, whose gate lets the memory alone through: float64,
    1e-12."""
    others = pytest.importorskip("infini_transformer_pytorch.infini_transformer")
    delta = update == "delta"
    theirs = others.CausalAttention(
        16, dim_head=6, heads=2, use_mem_delta_rule=delta, head_gate_init_value=-1e4
    ).double()
    theirs.to_out = torch.nn.Identity()
    x = torch.randn(2, 23, 16, dtype=torch.float64)
    with torch.no_grad():
        q, k, v = theirs.split_heads(theirs.to_qkv(theirs.norm(x)))
        pieces, memories = [], None
        for first in range(0, 23, CHUNK):
            segment = x[:, first : first + CHUNK]
            y, _, memories = theirs(segment, past_memories=memories, return_new_memories=True)
            pieces.append(y)
        matrix = torch.zeros(2, 2, 6, 7, dtype=torch.float64)
        memory, done, found = InfiniMemory(matrix, matrix.clone()), 0, []
        for count in calls:
            now, layout = slice(done, done + count), Layout.dense(done, 2, count, CPU)
            features = (sigma(q[:, :, now]), sigma(k[:, :, now]), v[:, :, now])
            read, memory = infini_rule(*features, memory, layout, CHUNK, update)
            found.append(read)
            done += count
    # Their first segment has no memory and is local attention alone.
    expected = torch.cat(pieces, 1)[:, CHUNK:]
    got = torch.cat(found, 2).transpose(1, 2).flatten(2)[:, CHUNK:]
    assert torch.allclose(got, expected, rtol=0, atol=1e-12)
    assert bool(expected.any())


def test_a_token_that_is_not_written_leaves_the_normaliser_alone() -> None:
    """s(0) = 1, so zeros as keys would count: here nothing has left the window yet."""
    mixer = make(write_scope="evicted").double()
    randomise(mixer)
    x = torch.randn(2, 4, HIDDEN, dtype=torch.float64)
    _, state = mixer(x, mixer.init_state(2, x.dtype, CPU), Layout.dense(0, 2, 4, CPU))
    assert not any(bool(t.any()) for t in state.memory.memory.tensors().values())


def test_the_delta_rule_does_not_write_what_is_known() -> None:
    """Tokens that all say the same: the second chunk finds nothing to correct."""
    sums = {}
    for update in ("linear", "delta"):
        mixer = make(update=update, conv=0).double()
        randomise(mixer)
        assert isinstance(mixer, InfiniMixer)
        x = torch.randn(1, 1, HIDDEN, dtype=torch.float64).expand(1, 2 * CHUNK, HIDDEN)
        start = mixer.init_state(1, x.dtype, CPU)
        _, first = mixer(x[:, :CHUNK], start, Layout.dense(0, 1, CHUNK, CPU))
        before = first.memory.matrix.clone()
        _, second = mixer(x[:, CHUNK:], first, Layout.dense(CHUNK, 1, CHUNK, CPU))
        change = (second.memory.matrix - before)[..., :-1].detach()
        sums[update] = float(change.abs().max())
    assert sums["delta"] < 1e-12 < sums["linear"]


def test_what_was_learned_is_carried_into_another_text() -> None:
    """The matrix stays; what the open chunk held does not fall into a chunk of the other text."""
    mixer = make().double()
    randomise(mixer)
    x = torch.randn(1, CHUNK + 3, HIDDEN, dtype=torch.float64)
    start = mixer.init_state(1, x.dtype, CPU)
    with torch.no_grad():
        _, learned = mixer(x, start, Layout.dense(0, 1, CHUNK + 3, CPU))
        carried = mixer.carry(learned, mixer.init_state(1, x.dtype, CPU))
    assert torch.equal(carried.memory.matrix, learned.memory.matrix)
    assert bool(learned.memory.written.any())
    assert not bool(carried.memory.written.any())
    assert not any(bool(tail.any()) for tail in carried.tails.values())


def test_bad_options_are_refused() -> None:
    with pytest.raises(AllMemError, match=r"update.*'delat'.*delta"):
        InfiniOptions(update="delat")  # type: ignore[arg-type]
    with pytest.raises(AllMemError, match="chunk = 0"):
        InfiniOptions(chunk=0)
    with pytest.raises(AllMemError, match=r"in chunks .* 'shared' cannot be had with it"):
        make(write_scope="evicted", projections="shared")
