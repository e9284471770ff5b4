"""The memory network M and the closed form of its inner gradient (paper section 3.2; design of the
update rule: LaCT).

    swiglu:  M(z; F) = z + F_down (SiLU(F_gate z) * (F_up z))
    linear:  M(z; F) = z + F_down z

Letters: R rows, H memory heads, N tokens, d head size, h width. Weights are [R, H, out, in].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from allmem.memory.state import FastWeights

__all__ = ["MemoryNetwork", "Scales"]

Scales = Mapping[str, Tensor]
"""Row scales [R, H, out, 1] that turn stored weights into normalised ones: F' = scale * F. A matrix
without an entry is used as it is. Kept apart from the weights, so that a single token need not
write a whole normalised copy of them."""

UNSCALED: Scales = {}


def _forward(z: Tensor, weights: FastWeights, scales: Scales, name: str) -> Tensor:
    """F' z for every token: [R, H, N, in] to [R, H, N, out]."""
    y = z @ weights[name].mT
    return _times(y, scales[name].mT) if name in scales else y


def _backward(e: Tensor, weights: FastWeights, scales: Scales, name: str) -> Tensor:
    """F'^T e for every token: [R, H, N, out] to [R, H, N, in]."""
    return (e * scales[name].mT if name in scales else e) @ weights[name]


def _times(x: Tensor, factor: Tensor) -> Tensor:
    """x * factor, for an x that nobody needs any more: in its place, unless a gradient will."""
    return x * factor if torch.is_grad_enabled() else x.mul_(factor)


def _silu_backward(e: Tensor, a: Tensor) -> Tensor:
    """e * SiLU'(a) = e * s (1 + a (1 - s)), for an e that nobody needs any more."""
    if not torch.is_grad_enabled():
        # In one go; itself it has no derivative.
        return torch.ops.aten.silu_backward(e, a)
    s = a.sigmoid()
    return e * (s + a * s * (1 - s))


@dataclass(frozen=True)
class MemoryNetwork:
    """M with its options. Holds no weights."""

    swiglu: bool = True
    residual: bool = True
    dot_loss: bool = False

    def read(self, z: Tensor, weights: FastWeights, scales: Scales = UNSCALED) -> Tensor:
        """M(z; F), [R, H, N, d] to [R, H, N, d]."""
        hidden = z
        if self.swiglu:
            gate = _forward(z, weights, scales, "gate")
            hidden = F.silu(gate) * _forward(z, weights, scales, "up")
        y = _forward(hidden, weights, scales, "down")
        if not self.residual:
            return y
        return z + y if torch.is_grad_enabled() else y.add_(z)

    def loss(self, k: Tensor, v: Tensor, weights: FastWeights, scales: Scales = UNSCALED) -> Tensor:
        """Inner loss of every token, [R, H, N]: 1/2 |M(k) - v|^2, or -M(k) . v."""
        y = self.read(k, weights, scales)
        return -(y * v).sum(-1) if self.dot_loss else 0.5 * (y - v).square().sum(-1)

    def gradient(
        self, k: Tensor, v: Tensor, eta: Tensor, weights: FastWeights, scales: Scales = UNSCALED
    ) -> FastWeights:
        """Sum over tokens of eta_t dl_t/dF at the normalised weights F', in closed form.

        Args:
            k, v: [R, H, N, d].
            eta: [R, H, N, M], one rate per token and matrix, in the order of the matrices' names.

        Returns:
            {matrix: [R, H, out, in]}.
        """
        if not self.swiglu:
            error = self._error(k, _forward(k, weights, scales, "down"), v)
            return {"down": _times(error, eta[..., 0:1]).mT @ k}
        a = _forward(k, weights, scales, "gate")
        b = _forward(k, weights, scales, "up")
        silu = F.silu(a)
        hidden = silu * b
        error = self._error(k, _forward(hidden, weights, scales, "down"), v)
        delta = _backward(error, weights, scales, "down")
        # Rates stand at the side with fewer features.
        return {
            "gate": _silu_backward(_times(b, delta), a).mT @ (eta[..., 0:1] * k),
            "up": _times(delta, silu).mT @ (eta[..., 1:2] * k),
            "down": _times(error, eta[..., 2:3]).mT @ hidden,
        }

    def _error(self, k: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """dl/dM(k), for a y that nobody needs any more."""
        if self.dot_loss:
            return -v
        if torch.is_grad_enabled():
            return y + k - v if self.residual else y - v
        return y.add_(k).sub_(v) if self.residual else y.sub_(v)
