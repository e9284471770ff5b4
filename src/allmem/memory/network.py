"""The memory network M and the closed form of its inner gradient (paper section 3.2; design of the
update rule: LaCT).

    swiglu:  M(z; F) = z + F_down (SiLU(F_gate z) * (F_up z))
    linear:  M(z; F) = z + F_down z

Letters: R rows, H memory heads, N tokens, d head size, h width. Weights are [R, H, out, in].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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
    return y * scales[name].mT if name in scales else y


def _backward(e: Tensor, weights: FastWeights, scales: Scales, name: str) -> Tensor:
    """F'^T e for every token: [R, H, N, out] to [R, H, N, in]."""
    return (e * scales[name].mT if name in scales else e) @ weights[name]


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
        return z + y if self.residual else y

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
            return {"down": (eta[..., 0:1] * error).mT @ k}
        a = _forward(k, weights, scales, "gate")
        b = _forward(k, weights, scales, "up")
        sigmoid = a.sigmoid()
        silu = a * sigmoid
        hidden = silu * b
        error = self._error(k, _forward(hidden, weights, scales, "down"), v)
        delta = _backward(error, weights, scales, "down")
        # SiLU'(a) = s (1 + a (1 - s)) = s + SiLU(a) (1 - s)
        slope = sigmoid + silu * (1 - sigmoid)
        return {
            "gate": (eta[..., 0:1] * delta * b * slope).mT @ k,
            "up": (eta[..., 1:2] * delta * silu).mT @ k,
            "down": (eta[..., 2:3] * error).mT @ hidden,
        }

    def _error(self, k: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """dl/dM(k)."""
        if self.dot_loss:
            return -v
        return y + k - v if self.residual else y - v
