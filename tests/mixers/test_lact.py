"""Large-Chunk Test-Time Training: the contract, and its equations written out once more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import allmem
from allmem.choices import Conversion
from allmem.config import WindowConfig
from allmem.layout import Layout
from allmem.memory.projections import AttentionWeights, Written
from allmem.mixers.allmem import AllMemMixer
from allmem.mixers.base import Mixer
from allmem.mixers.conformance import MixerConformance, randomise
from allmem.mixers.registry import memory_kind
from allmem.opening import outline
from tests.models.tiny import base_model

HIDDEN, H, C = 24, 2, 5
ATTENTION = AttentionWeights(query_heads=4, kv_heads=H, head_dim=8)
WINDOW = WindowConfig(window=7, sinks=2)
CPU = torch.device("cpu")

CASES: dict[str, dict[str, Any]] = {
    "muon": {},
    "wider-than-its-keys": {"width": 15},
    "gradient-descent": {"optimizer": "sgd"},
    "bare": {"conv": 0, "gate": False, "momentum": False},
    "evicted": {"write_scope": "evicted"},
}


def lact(**options: Any) -> Mixer:
    torch.manual_seed(1)
    kind = memory_kind("lact")
    assert kind is not None
    chosen = kind.options({"chunk": C, **options})
    return kind.make(HIDDEN, chosen, ATTENTION, WINDOW)


class TestLaCT(MixerConformance):
    """The contract, with the options that are LaCT's own."""

    hidden_size = HIDDEN
    options: dict[str, Any]

    @pytest.fixture(autouse=True, params=CASES.values(), ids=CASES.keys())
    def choose(self, request: pytest.FixtureRequest) -> None:
        self.options = request.param

    def make_mixer(self) -> Mixer:
        return lact(**self.options)


def orthogonal(update: Tensor) -> Tensor:
    """What five Newton-Schulz steps with LaCT's coefficients make of the singular values."""
    u, s, v = torch.linalg.svd(update, full_matrices=False)
    s = s / (s.square().sum(-1, keepdim=True).sqrt() + 1e-7)
    for a, b, c in (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ):
        s = a * s + b * s**3 + c * s**5
    return (u * s[..., None, :]) @ v


def f(w0: Tensor, w1: Tensor, w2: Tensor, z: Tensor) -> Tensor:
    """w1 (SiLU(w0 z) * (w2 z)) for z [H, n, d]."""
    return (F.silu(z @ w0.mT) * (z @ w2.mT)) @ w1.mT


def by_equations(mixer: AllMemMixer, x: Tensor, muon: bool) -> Tensor:
    """Paper sections 3.1 and 3.2, one text x [N, D], without convolutions and gate; the gradient
    of the chunk's loss by autograd."""
    unit = mixer.unit
    d = unit.head_dim

    def heads(name: str) -> Tensor:
        projected = x @ getattr(unit.projections, name).weight.T
        return F.silu(projected.unflatten(-1, (H, d)).transpose(0, 1))  # [H, N, d]

    q, k, v = heads("q"), heads("k"), heads("v")
    q, k = (z / z.norm(dim=-1, keepdim=True) for z in (q, k))
    rates = F.softplus(x @ unit.eta.weight.T + unit.eta.bias).unflatten(-1, (H, 3))
    momentum = (x @ unit.beta.weight.T + unit.beta.bias).sigmoid()  # [N, H]
    weights = [unit.initial[name].detach() for name in ("gate", "down", "up")]
    lengths = [w.norm(dim=-1, keepdim=True) for w in weights]
    moving = [torch.zeros_like(w) for w in weights]
    read = []
    for first in range(0, len(x), C):
        now = slice(first, first + C)
        read.append(f(*weights, q[:, now]))
        if len(x[now]) < C:
            break
        leaves = [w.clone().requires_grad_() for w in weights]
        loss = -(f(*leaves, k[:, now]) * v[:, now]).sum(-1)  # [H, C]
        # Every matrix has its own rate: that of gate, of down and of up.
        for i, column in enumerate((0, 2, 1)):
            rated = (rates[now, :, column].T * loss).sum()
            (gradient,) = torch.autograd.grad(rated, leaves[i], retain_graph=True)
            moving[i] = momentum[now].mean(0)[:, None, None] * moving[i] - gradient
        steps = [orthogonal(m) if muon else m for m in moving]
        weights = [w + step for w, step in zip(weights, steps, strict=True)]
        weights = [
            w / w.norm(dim=-1, keepdim=True) * n for w, n in zip(weights, lengths, strict=True)
        ]
    out = torch.cat(read, 1).transpose(0, 1)  # [N, H, d]
    out = F.rms_norm(out, (d,), eps=1e-6) * unit.o_norm.weight
    return out.flatten(1) @ unit.projections.o.weight.T


@pytest.mark.parametrize("parts", [(33,), (12, 21), (1,) * 33], ids=["prefill", "two", "decode"])
@pytest.mark.parametrize("optimizer", ["muon", "sgd"])
def test_it_computes_the_papers_equations(optimizer: str, parts: tuple[int, ...]) -> None:
    """To 1e-5, since lengths of keys have 1e-6 added under the root here."""
    mixer = lact(conv=0, gate=False, optimizer=optimizer, width=15).double()
    assert isinstance(mixer, AllMemMixer)
    randomise(mixer)
    g = torch.Generator().manual_seed(2)
    x = torch.randn(1, sum(parts), HIDDEN, generator=g, dtype=torch.float64)
    state, pieces, done = mixer.init_state(1, x.dtype, CPU), [], 0
    with torch.no_grad():
        for count in parts:
            now = x[:, done : done + count]
            y, state = mixer(now, state, Layout.dense(done, 1, count, CPU))
            pieces.append(y)
            done += count
    want = by_equations(mixer, x[0], optimizer == "muon").detach()
    assert float((torch.cat(pieces, 1)[0] - want).norm() / want.norm()) < 1e-5


def test_it_starts_as_lact_does() -> None:
    """Rates of 0.001 for all matrices, not scaled at LaCT's chunk of 2048; rows of length one."""
    torch.manual_seed(0)
    kind = memory_kind("lact")
    assert kind is not None
    mixer = kind.make(256, kind.options({}), AttentionWeights(4, 2, 64), WindowConfig(4096))
    assert isinstance(mixer, AllMemMixer)
    eta, _ = mixer.unit.rates(Written(torch.randn(1, 3, 256)))
    torch.testing.assert_close(eta, torch.full_like(eta, 0.001), rtol=1e-4, atol=0)
    for weight in mixer.unit.initial.values():
        assert float(weight.detach().norm(dim=-1).mean()) == pytest.approx(1, abs=0.05)


def test_a_saved_model_can_be_read_with_another_chunk(tmp_path: Path) -> None:
    model = allmem.convert(base_model(), window=8, sinks=2, chunk=6, mixers="lact,multiscale")
    model.config.save_pretrained(tmp_path)
    assert outline(str(tmp_path)).model.config.chunk == 6
    options = outline(str(tmp_path), Conversion(chunk=4)).model.config.mixer_options
    assert options["lact"]["chunk"] == options["multiscale"]["chunk"] == 4
    # A window that is smaller takes the chunks with it.
    options = outline(str(tmp_path), Conversion(window=5)).model.config.mixer_options
    assert options["lact"]["chunk"] == options["multiscale"]["chunk"] == 5
