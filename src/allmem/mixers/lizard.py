"""``lizard``: gated linear attention with learned features, and meta memory (Nguyen et al. 2025,
arXiv:2507.09025).

    S_t = diag(a_t) S_{t-1} + f(k_t) v_t^T;   z_t = a_t z_{t-1} + f(k_t)
    o_t = S_t^T g(q_t) / (z_t . g(q_t)) + softmax(M_k q_t d^{-1/2})^T M_v
    f(x) = softmax([F x, -F x]);   g(x) = softmax([G x, -G x]);   a_t = sigmoid(U V x_t + c)

f and g are the features of Hedgehog (Zhang et al. 2024, arXiv:2402.04347), which learn to resemble
softmax attention; a decay for each of them takes the place of RoPE. In Lizard the meta memory is a
few learned tokens that every query of the window attention sees. Here that attention is frozen, so
they are learned keys M_k and values M_v that the memory reads beside its state, with a softmax of
their own. The decays' U starts at zero and their c spread, as in ``gla``; M_v starts at zero. q and
k are convolved, and divided by their root mean square to give the features a known scale.

Letters: R rows, N slots of a call, D hidden size, H heads, d size of keys, dv of values, f rows of
F and of G, m tokens of meta memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from allmem.config import KeyNorm, require_positive
from allmem.errors import AllMemError
from allmem.memory.projections import AttentionWeights
from allmem.mixers.gla import ChannelDecay
from allmem.mixers.heads import Heads
from allmem.mixers.matrix import MatrixMixer, MatrixOptions
from allmem.mixers.recurrence import CHANNEL_BLOCK, block_flops, linear_rule
from allmem.mixers.registry import MemoryKind, register_memory

__all__ = ["LizardMixer", "LizardOptions"]

MASS_EPS = 1e-6
"""Added to z_t . g(q_t): a state that holds nothing like q, or nothing at all, says nothing."""


@dataclass(frozen=True)
class LizardOptions(MatrixOptions):
    """Options of Lizard.

    Raises:
        AllMemError: on a value outside its range.
    """

    state_sizes: ClassVar[tuple[str, ...]] = ("features", "value_dim")

    activation: bool = False
    """Whether q, k and v go through SiLU after the convolution."""
    qk_norm: KeyNorm = "rms"
    """What q and k are divided by, head by head: their length, their root mean square (with a
    learned scale) or nothing."""
    features: int | None = None
    """f: a head's state has 2 f rows; ``None`` for d."""
    meta: int = 4
    """m; 0 for none."""
    decay_rank: int = 16
    """Rank of what maps x to the decays."""

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        require_positive(name, features=self.features, decay_rank=self.decay_rank)
        if not isinstance(self.meta, int) or isinstance(self.meta, bool) or self.meta < 0:
            raise AllMemError(f"{name}: meta = {self.meta!r} must be a whole number, 0 or more")

    def sized(self, hidden_size: int, kv_heads: int) -> Self:
        sized = super().sized(hidden_size, kv_heads)
        return sized.replace(features=sized.features or sized.key_dim)


class LizardMixer(MatrixMixer):
    """Normalised linear attention over learned features, every one of which forgets at a rate of
    its own; and a softmax over learned tokens."""

    # Small numbers whose rounding matters.
    keep_fp32 = ("decay",)

    def __init__(
        self, hidden_size: int, options: LizardOptions, attention: AttentionWeights
    ) -> None:
        super().__init__(hidden_size, options, attention)
        heads, key_dim, value_dim = self.shell.heads, self.shell.key_dim, self.shell.value_dim
        self.features = options.features or key_dim
        self.block = min(options.block, CHANNEL_BLOCK)
        self.decay = ChannelDecay(
            hidden_size, heads, 2 * self.features, options.decay_rank, 1.0, self.decay_window
        )
        # As Hedgehog, at the identity.
        start = torch.eye(key_dim, self.features).repeat(heads, 1, 1)
        self.q_features = nn.Parameter(start)
        self.k_features = nn.Parameter(start.clone())
        self.meta = options.meta
        if self.meta:
            self.meta_keys = nn.Parameter(torch.empty(heads, self.meta, key_dim))
            self.meta_values = nn.Parameter(torch.zeros(heads, self.meta, value_dim))
            nn.init.normal_(self.meta_keys)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """S and, as its last column, z."""
        return 2 * self.features, self.shell.value_dim + 1

    def rule(self, heads: Heads, matrix: Tensor) -> tuple[Tensor, Tensor]:
        k = heads.kept(_softmax_features(heads.k, self.k_features))
        q = _softmax_features(heads.q, self.q_features)
        v = torch.cat([heads.v, torch.ones_like(heads.v[..., :1])], -1)
        decay = heads.kept(heads.mapped(self.decay))
        read, matrix = linear_rule(q, k, v, decay, matrix, self.block, heads.dtype)
        read = read[..., :-1] / (read[..., -1:] + MASS_EPS)
        if self.meta:
            read = read + self._meta_memory(heads.q)
        return read, matrix

    def _meta_memory(self, q: Tensor) -> Tensor:
        """What the learned tokens say to q, [R, H, N, dv]."""
        keys, values = self.meta_keys.to(q.dtype), self.meta_values.to(q.dtype)
        return (q @ keys.mT * self.shell.key_dim**-0.5).softmax(-1) @ values

    def rule_flops(self, tokens: int) -> int:
        key_dim, value_dim = self.shell.key_dim, self.shell.value_dim
        features = 2 * 2 * key_dim * self.features
        meta = 2 * self.meta * (key_dim + value_dim)
        across = block_flops(tokens, self.block, *self.matrix_shape, delta=False)
        return across + tokens * (features + meta)


def _softmax_features(x: Tensor, weight: Tensor) -> Tensor:
    """softmax([W x, -W x]), [R, H, N, 2 f], for x [R, H, N, d] and W^T [H, d, f]."""
    x = x @ weight.to(x.dtype)
    return torch.cat([x, -x], -1).softmax(-1)


register_memory(MemoryKind("lizard", LizardOptions, LizardMixer))
