"""The memory network M and the closed form of its inner gradient (paper section 3.2; design of the
update rule: LaCT).

    swiglu:  M(z; F) = z + F_down (SiLU(F_gate z) * (F_up z))
    linear:  M(z; F) = z + F_down z

Letters: B networks, one for each row and memory head; N tokens, d head size, h width, M matrices.
Weights are [B, out, in].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from allmem.memory.state import FastWeights

__all__ = ["Factors", "MemoryNetwork", "Scales", "StepGradients", "as_sums"]

Scales = Mapping[str, Tensor]
"""Row scales [B, out, 1] that turn stored weights into normalised ones: F' = scale * F. A matrix
without an entry is used as it is. Kept apart from the weights, so that a single token need not
write a whole normalised copy of them."""

UNSCALED: Scales = {}


FEW = 8
"""Up to how many queries and as many keys are multiplied together: what counts then is how often
the weights are read."""

Factors = tuple[Tensor, Tensor]
"""A sum over tokens of outer products: [B, N, out] and [B, N, in]."""


@dataclass(frozen=True)
class StepGradients:
    """Of an outer loss, with respect to what ``MemoryNetwork.step`` was given."""

    q: Tensor
    """[B, N, d]; so are ``k`` and ``v``."""
    k: Tensor
    v: Tensor
    eta: Tensor
    """[B, N, M]."""
    weights: dict[str, list[Factors]]
    """Of every matrix, factors whose sums over tokens are to be added up."""
    scales: dict[str, Tensor]
    """[B, out, 1]."""


def _forward(q: Tensor, k: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """F q and F k for every token: [B, N, in] to [B, N, out]."""
    tokens = q.shape[1]
    if as_sums(tokens):
        # One pass over the weights, which compiled code shares with the norms of their rows.
        return (q[:, :, None] * weight[:, None]).sum(-1), (k[:, :, None] * weight[:, None]).sum(-1)
    if tokens > FEW:
        return q @ weight.mT, k @ weight.mT
    both = torch.cat([q, k], 1) @ weight.mT
    return both[:, :tokens], both[:, tokens:]


def as_sums(tokens: int) -> bool:
    """Whether products are better written as sums: of one token, in compiled code, which fuses
    them."""
    return tokens == 1 and torch.compiler.is_compiling()


def _scaled(y: Tensor, scales: Scales, name: str) -> Tensor:
    """F' k from F k, in its place."""
    return y.mul_(scales[name].mT) if name in scales else y


def _silu_second(a: Tensor) -> Tensor:
    """SiLU''(a) = s (1 - s) (2 + a (1 - 2 s)) with s the sigmoid of a."""
    s = a.sigmoid()
    second = torch.rsub(s, 1, alpha=2).mul_(a).add_(2)
    return second.mul_(s.addcmul_(s, s, value=-1))


_silu_backward = torch.ops.aten.silu_backward
"""(e, a) -> e * SiLU'(a)."""


@dataclass(frozen=True)
class MemoryNetwork:
    """M with its options. Holds no weights. Nothing here is recorded by autograd: what needs
    gradients goes through ``chunk_step``."""

    swiglu: bool = True
    residual: bool = True
    dot_loss: bool = False

    def step(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        eta: Tensor,
        weights: FastWeights,
        scales: Scales = UNSCALED,
    ) -> tuple[Tensor, dict[str, Factors]]:
        """What the queries read, and by what the keys and values change the weights.

        Args:
            q, k, v: [B, N, d].
            eta: [B, N, M], one rate per token and matrix, in the order of the matrices' names.
            weights: F, which is read as it is; the gradient is that at F', with its rows scaled.

        Returns:
            M(q; F), [B, N, d]; and of every matrix the factors of the sum over tokens of
            eta_t dl_t/dF', in closed form.
        """
        if not self.swiglu:
            y, of_k = _forward(q, k, weights["down"])
            error = self._error(k, _scaled(of_k, scales, "down"), v)
            return self._out(q, y), {"down": (error.mul_(eta[..., 0:1]), k)}
        a_q, a = _forward(q, k, weights["gate"])
        b_q, b = _forward(q, k, weights["up"])
        a, b = _scaled(a, scales, "gate"), _scaled(b, scales, "up")
        silu = F.silu(a)
        hidden = silu * b
        y, of_k = _forward(F.silu(a_q).mul_(b_q), hidden, weights["down"])
        error = self._error(k, _scaled(of_k, scales, "down"), v)
        back = error * scales["down"].mT if "down" in scales else error
        if as_sums(back.shape[1]):
            delta = (back[..., None] * weights["down"][:, None]).sum(-2)
        else:
            delta = back @ weights["down"]
        # Rates stand at the side with fewer features.
        return self._out(q, y), {
            "gate": (_silu_backward(b.mul_(delta), a), eta[..., 0:1] * k),
            "up": (delta.mul_(silu), eta[..., 1:2] * k),
            "down": (error.mul_(eta[..., 2:3]), hidden),
        }

    def read(self, q: Tensor, weights: FastWeights) -> Tensor:
        """M(q; F), [B, N, d]: what ``step`` reads."""
        hidden = q
        if self.swiglu:
            hidden = F.silu(q @ weights["gate"].mT).mul_(q @ weights["up"].mT)
        return self._out(q, hidden @ weights["down"].mT)

    def step_backward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        eta: Tensor,
        weights: FastWeights,
        scales: Scales,
        d_read: Tensor,
        d_sums: FastWeights,
    ) -> StepGradients:
        """The derivative of ``step`` and of the sums over its factors, all recomputed from what
        ``step`` was given.

        Args:
            d_read: [B, N, d], dL/dM(q; F).
            d_sums: {matrix: [B, out, in]}, dL/d(sum over tokens).
        """
        dq, factors = self.read_backward(q, weights, d_read)
        if not self.swiglu:
            return self._linear_backward(q, k, v, eta, weights, scales, d_sums, dq, factors)
        w, z = weights, {}  # z: F k, before its rows are scaled
        z["gate"], z["up"] = k @ w["gate"].mT, k @ w["up"].mT
        a, b = (z[n] * scales[n].mT if n in scales else z[n] for n in ("gate", "up"))
        silu = F.silu(a)
        hidden = silu * b
        z["down"] = hidden @ w["down"].mT
        y = z["down"] * scales["down"].mT if "down" in scales else z["down"].clone()
        error = self._error(k, y, v)
        back = error * scales["down"].mT if "down" in scales else error
        delta = back @ w["down"]
        eta_gate, eta_up, eta_down = eta.split(1, -1)

        # Through the three sums of outer products.
        slope_b = _silu_backward(b, a)  # SiLU'(a) b
        d_gate = (k @ d_sums["gate"].mT).mul_(eta_gate)
        d_up = (k @ d_sums["up"].mT).mul_(eta_up)
        d_k_gate = (delta * slope_b) @ d_sums["gate"]
        d_k_up = (delta * silu) @ d_sums["up"]
        d_error = hidden @ d_sums["down"].mT
        d_eta = torch.cat(
            [
                (d_k_gate * k).sum(-1, keepdim=True),
                (d_k_up * k).sum(-1, keepdim=True),
                (d_error * error).sum(-1, keepdim=True),
            ],
            -1,
        )
        d_k = d_k_gate.mul_(eta_gate).addcmul_(d_k_up, eta_up)
        d_hidden = (error * eta_down) @ d_sums["down"]
        d_error.mul_(eta_down)

        # Through delta = F'_down^T e.
        d_delta = (d_gate * slope_b).addcmul_(d_up, silu)
        d_b = _silu_backward(d_gate * delta, a)
        d_a = _silu_second(a).mul_(d_gate).mul_(b).mul_(delta)
        d_a.add_(_silu_backward(d_up.mul_(delta), a))
        d_back = d_delta @ w["down"].mT
        factors["down"].append((back, d_delta))
        d_scales = {}
        if "down" in scales:
            d_scales["down"] = (d_back * error).sum(1)[..., None]
            d_back = d_back * scales["down"].mT
        d_error.add_(d_back)

        # Through the error, down to what stood before the activation.
        d_v, d_y = self._error_backward(d_error, d_k)
        if d_y is not None:
            d_z = d_y
            if "down" in scales:
                d_scales["down"] += (d_y * z["down"]).sum(1)[..., None]
                d_z = d_y * scales["down"].mT
            d_hidden = d_hidden.add_(d_z @ w["down"])
            factors["down"].append((d_z, hidden))
        d_b.addcmul_(d_hidden, silu)
        d_a.addcmul_(d_hidden, slope_b)
        for name, d_z in (("gate", d_a), ("up", d_b)):
            if name in scales:
                d_scales[name] = (d_z * z[name]).sum(1)[..., None]
                d_z.mul_(scales[name].mT)
            factors[name].append((d_z, k))
            d_k.add_(d_z @ w[name])
        return StepGradients(dq, d_k, d_v, d_eta, factors, d_scales)

    def read_backward(
        self, q: Tensor, weights: FastWeights, d_read: Tensor
    ) -> tuple[Tensor, dict[str, list[Factors]]]:
        """The derivative of ``read``: dq, and the factors of dF."""
        back = d_read @ weights["down"]
        if not self.swiglu:
            dq = back.add_(d_read) if self.residual else back
            return dq, {"down": [(d_read, q)]}
        a, b = q @ weights["gate"].mT, q @ weights["up"].mT
        silu = F.silu(a)
        d_a, d_b = _silu_backward(back * b, a), back.mul_(silu)
        dq = (d_a @ weights["gate"]).add_(d_b @ weights["up"])
        if self.residual:
            dq.add_(d_read)
        return dq, {"gate": [(d_a, q)], "up": [(d_b, q)], "down": [(d_read, silu.mul_(b))]}

    def _linear_backward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        eta: Tensor,
        weights: FastWeights,
        scales: Scales,
        d_sums: FastWeights,
        dq: Tensor,
        factors: dict[str, list[Factors]],
    ) -> StepGradients:
        w = weights["down"]
        z = k @ w.mT
        error = self._error(k, z * scales["down"].mT if "down" in scales else z.clone(), v)
        d_error = k @ d_sums["down"].mT
        d_eta = (d_error * error).sum(-1, keepdim=True)
        d_k = (error * eta) @ d_sums["down"]
        d_v, d_z = self._error_backward(d_error.mul_(eta), d_k)
        d_scales = {}
        if d_z is not None:
            if "down" in scales:
                d_scales["down"] = (d_z * z).sum(1)[..., None]
                d_z = d_z * scales["down"].mT
            d_k.add_(d_z @ w)
            factors["down"].append((d_z, k))
        return StepGradients(dq, d_k, d_v, d_eta, factors, d_scales)

    def _out(self, z: Tensor, y: Tensor) -> Tensor:
        """M(z), in the place of y."""
        return y.add_(z) if self.residual else y

    def _error(self, k: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """dl/dM(k), in the place of y."""
        if self.dot_loss:
            return -v
        return y.add_(k).sub_(v) if self.residual else y.sub_(v)

    def _error_backward(self, d_error: Tensor, d_k: Tensor) -> tuple[Tensor, Tensor | None]:
        """dv and dy; what flows into k is added to ``d_k``."""
        if self.dot_loss:
            return -d_error, None
        if self.residual:
            d_k.add_(d_error)
        return -d_error, d_error
