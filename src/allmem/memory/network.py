"""The memory network M and the closed form of its inner gradient (paper section 3.2; design of the
update rule: LaCT).

    swiglu:  M(z; F) = z + F_down (SiLU(F_gate z) * (F_up z))
    linear:  M(z; F) = z + F_down z

Letters: R rows, H memory heads, N tokens, d head size, h width. Weights are [R, H, out, in].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from allmem.memory.state import FastWeights

__all__ = ["Factors", "MemoryNetwork", "Scales"]

Scales = Mapping[str, Tensor]
"""Row scales [R, H, out, 1] that turn stored weights into normalised ones: F' = scale * F. A matrix
without an entry is used as it is. Kept apart from the weights, so that a single token need not
write a whole normalised copy of them."""

UNSCALED: Scales = {}


FEW = 8
"""Up to how many queries and as many keys are multiplied together, unless there are gradients: what
counts then is how often the weights are read."""

Factors = tuple[Tensor, Tensor]
"""A gradient as a product over tokens: [R, H, N, out] and [R, H, N, in]."""


def _forward(q: Tensor, k: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """F q and F k for every token: [R, H, N, in] to [R, H, N, out]."""
    tokens = q.shape[2]
    if tokens > FEW or torch.is_grad_enabled():
        return q @ weight.mT, k @ weight.mT
    both = torch.cat([q, k], 2) @ weight.mT
    return both[:, :, :tokens], both[:, :, tokens:]


def _scaled(y: Tensor, scales: Scales, name: str) -> Tensor:
    """F' k from F k."""
    return _times(y, scales[name].mT) if name in scales else y


def _backward(e: Tensor, weights: FastWeights, scales: Scales, name: str) -> Tensor:
    """F'^T e for every token: [R, H, N, out] to [R, H, N, in]."""
    return (e * scales[name].mT if name in scales else e) @ weights[name]


def _times(x: Tensor, factor: Tensor) -> Tensor:
    """x * factor, for an x that nobody needs any more: in its place, unless a gradient will."""
    return x * factor if torch.is_grad_enabled() else x.mul_(factor)


class _SiluBackward(torch.autograd.Function):
    """e * SiLU'(a), with its own derivative: torch's in one pass has none, and one that is written
    out keeps and passes over three times as much.

        SiLU'(a) = s (1 + a (1 - s));  SiLU''(a) = s (1 - s) (2 + a (1 - 2 s))
    """

    @staticmethod
    def forward(ctx: Any, e: Tensor, a: Tensor) -> Tensor:
        ctx.save_for_backward(e, a)
        return torch.ops.aten.silu_backward(e, a)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        e, a = ctx.saved_tensors
        s = a.sigmoid()
        second = torch.rsub(s, 1, alpha=2).mul_(a).add_(2)
        second.mul_(s.addcmul_(s, s, value=-1)).mul_(e).mul_(grad)
        return torch.ops.aten.silu_backward(grad, a), second


def _silu_backward(e: Tensor, a: Tensor) -> Tensor:
    """e * SiLU'(a)."""
    found: Tensor = _SiluBackward.apply(e, a)
    return found


@dataclass(frozen=True)
class MemoryNetwork:
    """M with its options. Holds no weights."""

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
            q, k, v: [R, H, N, d].
            eta: [R, H, N, M], one rate per token and matrix, in the order of the matrices' names.
            weights: F, which is read as it is; the gradient is that at F', with its rows scaled.

        Returns:
            M(q; F), [R, H, N, d]; and of every matrix the factors of the sum over tokens of
            eta_t dl_t/dF', in closed form.
        """
        if not self.swiglu:
            y, of_k = _forward(q, k, weights["down"])
            error = self._error(k, _scaled(of_k, scales, "down"), v)
            return self._out(q, y), {"down": (_times(error, eta[..., 0:1]), k)}
        a_q, a = _forward(q, k, weights["gate"])
        b_q, b = _forward(q, k, weights["up"])
        a, b = _scaled(a, scales, "gate"), _scaled(b, scales, "up")
        silu = F.silu(a)
        hidden = silu * b
        y, of_k = _forward(_times(F.silu(a_q), b_q), hidden, weights["down"])
        error = self._error(k, _scaled(of_k, scales, "down"), v)
        delta = _backward(error, weights, scales, "down")
        # Rates stand at the side with fewer features.
        return self._out(q, y), {
            "gate": (_silu_backward(_times(b, delta), a), eta[..., 0:1] * k),
            "up": (_times(delta, silu), eta[..., 1:2] * k),
            "down": (_times(error, eta[..., 2:3]), hidden),
        }

    def _out(self, z: Tensor, y: Tensor) -> Tensor:
        """M(z), for a y that nobody needs any more."""
        if not self.residual:
            return y
        return z + y if torch.is_grad_enabled() else y.add_(z)

    def _error(self, k: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """dl/dM(k), for a y that nobody needs any more."""
        if self.dot_loss:
            return -v
        if torch.is_grad_enabled():
            return y + k - v if self.residual else y - v
        return y.add_(k).sub_(v) if self.residual else y.sub_(v)
