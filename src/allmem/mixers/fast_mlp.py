"""A small network whose weights differ from token to token, read without making those weights.

The gradient of one token's loss in a matrix is an outer product of the error behind it and the
input before it. So if the weights that token t meets are stored ones, scaled, less the gradients of
the tokens up to t, scaled,

    W_t = sum_i s_ti W_i - sum_{j <= t} c_tj e_j x_j^T
    W_t h_t = sum_i s_ti (W_i h_t) - sum_{j <= t} c_tj (x_j . h_t) e_j

and the sum over tokens is an attention, layer after layer: the dual form of Sun et al. 2024
(arXiv:2407.04620, section 2.5). All e_j are taken at the same weights, so that none of them waits
for another.

Letters: R rows, H heads, n tokens, L layers; weights are [R, H, out, in].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from allmem.memory.state import FastWeights, accumulation_dtype

__all__ = ["FastMLP", "Gradients", "first_weights", "zeros_like"]


def first_weights(initial: Mapping[str, Tensor], rows: int, dtype: torch.dtype) -> FastWeights:
    """The learned starts [H, out, in] for every row, in the accumulation dtype of ``dtype``: copies
    to be written in place, through which gradients flow back."""
    wide = accumulation_dtype(dtype)
    return {
        name: w.to(wide).expand(rows, *w.shape).clone(memory_format=torch.contiguous_format)
        for name, w in initial.items()
    }


def zeros_like(weights: FastWeights) -> FastWeights:
    """Zeros of the same shapes."""
    return {name: torch.zeros_like(w) for name, w in weights.items()}


@dataclass(frozen=True)
class Gradients:
    """Of every token's loss in the matrices of all layers, as factors."""

    inputs: list[Tensor]
    """x: for each layer [R, H, n, in]."""
    errors: list[Tensor]
    """e, dl/d(W x): for each layer [R, H, n, out]."""


@dataclass(frozen=True)
class FastMLP:
    """L matrices with a GELU between any two. Holds no weights."""

    sizes: tuple[int, ...]
    """Of what enters, of every hidden vector, of what leaves: L + 1 numbers."""
    bias: bool = False
    gelu: Literal["none", "tanh"] = "none"
    """The GELU itself, or its approximation by tanh."""

    def shapes(self) -> dict[str, tuple[int, int]]:
        """{"w1", "b1", "w2", ...: (out, in)}; a bias is a matrix with one input."""
        found = {}
        for layer, (inputs, outputs) in enumerate(zip(self.sizes, self.sizes[1:], strict=False), 1):
            found[f"w{layer}"] = (outputs, inputs)
            if self.bias:
                found[f"b{layer}"] = (outputs, 1)
        return found

    def starts(self, heads: int) -> nn.ParameterDict:
        """Room for the learned starts of all weights, {name: [H, out, in]}; to be filled in."""
        return nn.ParameterDict(
            {name: nn.Parameter(torch.empty(heads, *s)) for name, s in self.shapes().items()}
        )

    def apply(self, h: Tensor, weights: FastWeights) -> Tensor:
        """[R, H, n, in] to [R, H, n, out], with the same weights for all."""
        for layer in range(1, len(self.sizes)):
            h = self._layer(F.gelu(h, approximate=self.gelu) if layer > 1 else h, weights, layer)
        return h

    def gradients(
        self,
        k: Tensor,
        target: Tensor,
        weights: FastWeights,
        error: Callable[[Tensor, Tensor], Tensor],
    ) -> Gradients:
        """Of every token's loss, in closed form.

        Args:
            k: [R, H, n, in], what enters.
            target: [R, H, n, out].
            error: (what leaves, target) -> dl/dz, all [R, H, n, out].
        """
        inputs, before = [k], []
        for layer in range(1, len(self.sizes)):
            before.append(self._layer(inputs[-1], weights, layer))
            if layer < len(self.sizes) - 1:
                inputs.append(F.gelu(before[-1], approximate=self.gelu))
        errors = [error(before[-1], target)]
        for layer in range(len(self.sizes) - 1, 1, -1):
            back = errors[0] @ weights[f"w{layer}"]
            errors.insert(0, back * self._slope(before[layer - 2]))
        return Gradients(inputs, errors)

    def read(
        self,
        q: Tensor,
        stored: Sequence[tuple[Tensor | None, FastWeights]],
        gradients: Gradients,
        rates: Tensor,
    ) -> Tensor:
        """What every token finds: [R, H, n, in] to [R, H, n, out].

        Args:
            stored: (s, W) pairs; s [R, H, n, 1], or ``None`` for one.
            rates: c, [R, H, n, n], zero above the diagonal.
        """
        h = q
        for layer, (x, e) in enumerate(zip(gradients.inputs, gradients.errors, strict=True), 1):
            if layer > 1:
                h = F.gelu(h, approximate=self.gelu)
            alike = h @ x.mT
            if self.bias:
                alike = alike + 1
            found = -(rates * alike) @ e
            for scale, weights in stored:
                here = self._layer(h, weights, layer)
                found = found + (here if scale is None else scale * here)
            h = found
        return h

    def total(self, gradients: Gradients, rates: Tensor) -> FastWeights:
        """sum_j c_j e_j x_j^T of every matrix; rates [R, H, n, 1]."""
        found = {}
        for layer, (x, e) in enumerate(zip(gradients.inputs, gradients.errors, strict=True), 1):
            scaled = rates * e
            found[f"w{layer}"] = scaled.mT @ x
            if self.bias:
                found[f"b{layer}"] = scaled.sum(2)[..., None]
        return found

    def gradient_flops(self, tokens: int) -> int:
        """Matrix products of ``gradients`` for one head, a multiply-add counting two."""
        weights = [a * b for a, b in zip(self.sizes, self.sizes[1:], strict=False)]
        return 2 * tokens * (sum(weights) + sum(weights[1:]))

    def total_flops(self, tokens: int) -> int:
        """Of ``total``, and of ``read`` in one set of stored weights."""
        return 2 * tokens * sum(a * b for a, b in zip(self.sizes, self.sizes[1:], strict=False))

    def pair_flops(self, pairs: int) -> int:
        """Of ``read`` among the tokens themselves, for so many entries of ``rates``."""
        return 2 * pairs * sum(a + b for a, b in zip(self.sizes, self.sizes[1:], strict=False))

    def _layer(self, h: Tensor, weights: FastWeights, layer: int) -> Tensor:
        y = h @ weights[f"w{layer}"].mT
        return y + weights[f"b{layer}"].mT if self.bias else y

    def _slope(self, z: Tensor) -> Tensor:
        """The derivative of the GELU."""
        if self.gelu == "none":
            normal = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
            return 0.5 * (1 + torch.erf(z / math.sqrt(2))) + z * normal
        # GELU's approximation: z (1 + tanh(r (z + 0.044715 z^3))) / 2 with r = sqrt(2 / pi).
        r = math.sqrt(2 / math.pi)
        tanh = torch.tanh(r * (z + 0.044715 * z**3))
        return 0.5 * (1 + tanh) + 0.5 * z * (1 - tanh.square()) * r * (
            1 + 3 * 0.044715 * z.square()
        )
