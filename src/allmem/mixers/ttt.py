"""``ttt_linear`` and ``ttt_mlp``: memories that are trained on what they read, a few tokens at a
time (TTT layers, Sun et al. 2024, arXiv:2407.04620).

    l_j = 1/2 |LN(f(k_j; W)) - (v_j - k_j)|^2
    W_t = W - s_i sum_{j <= t} r_j dl_j/dW          over the open mini-batch, i its tokens up to t
    o_t = q_t + LN(f(q_t; W_t))
    r_j = base_lr sigmoid(w . x_j + c) / d;   s_i = max(0, 1/i + p_i)

f is one matrix, or two with a GELU between them, with biases; LN has a learned scale and bias for
each head. The gradients of a mini-batch are all taken at W, the weights of its start, and each
token meets those of itself and the ones before it. Learned are the start of W, w, c, p and LN.

An open mini-batch is a sum of gradients in the state. Mini-batches count from a document's first
token, whatever the split of calls.

What differs from the authors' code: no RoPE on q and k inside a mini-batch, since no memory here
knows positions; q and k are normalised and convolved and the output is normalised head by head, as
in every memory of this slot; keys have a root mean square of one (``qk_norm = "rms"``), which is
what the division of the rate by d is made for.

Letters: R rows, N slots of a call, D hidden size, H heads, d head size, n tokens of a round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from allmem.config import HeadOptions, KeyNorm, require_positive
from allmem.errors import AllMemError
from allmem.layout import Layout
from allmem.memory.projections import AttentionWeights
from allmem.memory.state import accumulation_dtype
from allmem.memory.unit import Rate
from allmem.mixers.fast_mlp import FastMLP, first_weights, zeros_like
from allmem.mixers.heads import HeadMixer, Heads, HeadState
from allmem.mixers.registry import MemoryKind, register_memory
from allmem.mixers.ttt_rule import HeadLayerNorm, TTTMemory, ttt_rule

__all__ = ["TTTMLPOptions", "TTTMixer", "TTTOptions", "TTTState"]

START_STD = 0.02
"""Of the matrices at the start, as in the authors' code, whatever their size: LN undoes it."""


@dataclass(frozen=True)
class TTTOptions(HeadOptions):
    """Options of a TTT layer whose network is one matrix.

    Raises:
        AllMemError: on a value outside its range.
    """

    state_sizes: ClassVar[tuple[str, ...]] = ("key_dim",)

    qk_norm: KeyNorm = "rms"
    mini_batch: int = 16
    """Tokens whose gradients are taken at the same weights."""
    base_lr: float = 1.0
    """The largest rate of a token, times d."""

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        require_positive(name, mini_batch=self.mini_batch)
        if not self.base_lr > 0:
            raise AllMemError(f"{name}: base_lr = {self.base_lr!r} must be positive")

    def sized(self, hidden_size: int, kv_heads: int) -> Self:
        """As ``HeadOptions.sized``.

        Raises:
            AllMemError: if values have another size than keys.
        """
        options = super().sized(hidden_size, kv_heads)
        if options.key_dim != options.value_dim:
            raise AllMemError(
                f"{type(self).__name__}: key_dim = {options.key_dim} and value_dim = "
                f"{options.value_dim} must be equal, since the memory learns v - k; "
                "leave value_dim out"
            )
        return options

    @property
    def hidden_sizes(self) -> tuple[int, ...]:
        """Of the vectors between two matrices."""
        return ()


@dataclass(frozen=True)
class TTTMLPOptions(TTTOptions):
    """Options of a TTT layer whose network is two matrices.

    Raises:
        AllMemError: on a value outside its range.
    """

    state_sizes: ClassVar[tuple[str, ...]] = ("key_dim", "width")

    base_lr: float = 0.1
    width: int | None = None
    """Size of the vector between the two; ``None`` for 4 d."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(type(self).__name__, width=self.width)

    def sized(self, hidden_size: int, kv_heads: int) -> Self:
        options = super().sized(hidden_size, kv_heads)
        assert options.key_dim is not None
        return options.replace(width=options.width or 4 * options.key_dim)

    @property
    def hidden_sizes(self) -> tuple[int, ...]:
        assert self.width is not None
        return (self.width,)


@dataclass
class TTTState(HeadState):
    """What one sequence leaves behind."""

    memory: TTTMemory


class TTTMixer(HeadMixer[TTTState]):
    """A network for each head, trained by gradient descent on what it reads."""

    # Small numbers whose rounding matters: rates, LN and the start of the fast weights.
    keep_fp32 = ("rate", "token_scale", "norm_weight", "norm_bias", "initial")
    options: TTTOptions

    def __init__(self, hidden_size: int, options: TTTOptions, attention: AttentionWeights) -> None:
        super().__init__(hidden_size, options, attention)
        heads, size = self.shell.heads, self.shell.key_dim
        between = self.options.hidden_sizes
        self.network = FastMLP((size, *between, size), bias=True, gelu="tanh")
        self.rate = Rate(hidden_size, heads)
        self.token_scale = nn.Parameter(torch.empty(options.mini_batch))
        self.norm_weight = nn.Parameter(torch.ones(heads, size))
        self.norm_bias = nn.Parameter(torch.zeros(heads, size))
        self.initial = self.network.starts(heads)
        self.reset_network()

    @torch.no_grad()
    def reset_network(self) -> None:
        """Starting values of the fast weights, drawn from torch's global generator."""
        self.token_scale.zero_()
        for name, weight in self.initial.items():
            if name.startswith("b"):
                weight.zero_()
            else:
                weight.normal_(std=START_STD)

    def begin(self, rows: int, dtype: torch.dtype, device: torch.device) -> TTTState:
        weights = first_weights(dict(self.initial), rows, dtype)
        return TTTState(TTTMemory(weights, zeros_like(weights)))

    def periods(self, layout: Layout) -> frozenset[int]:
        return frozenset((self.options.mini_batch,))

    def mix(self, heads: Heads, state: TTTState, layout: Layout) -> tuple[Tensor, TTTState]:
        wide = heads.q.dtype
        rate = self.options.base_lr / self.shell.key_dim * heads.mapped(self.rate).sigmoid()
        rate = heads.kept(rate.to(wide).mT)[..., None]
        norm = HeadLayerNorm(self.norm_weight.to(wide)[:, None], self.norm_bias.to(wide)[:, None])
        found, memory = ttt_rule(
            heads.q, heads.k, heads.v, rate, self._token_scales(wide), norm,
            self.network, state.memory, layout,
        )  # fmt: skip
        return heads.q + norm(found), TTTState(memory)

    def _token_scales(self, dtype: torch.dtype) -> Tensor:
        """s, [mini-batch]."""
        learned = self.token_scale.to(dtype)
        place = torch.arange(1, len(learned) + 1, dtype=dtype, device=learned.device)
        return (1 / place + learned).clamp_min(0)

    def carried(self, old: TTTState, new: TTTState) -> TTTState:
        """The fast weights; the open mini-batch begins anew."""
        return TTTState(TTTMemory(old.memory.weights, new.memory.gradient))

    def state_bytes(self, tokens: int, dtype: torch.dtype) -> int:
        fast = sum(w.numel() for w in self.initial.values())
        return 2 * fast * accumulation_dtype(dtype).itemsize + super().state_bytes(tokens, dtype)

    def flops_by_part(self, tokens: int) -> dict[str, int]:
        network, size = self.network, self.options.mini_batch
        batches, rest = divmod(tokens, size)
        pairs = batches * size**2 + rest**2
        read = network.total_flops(tokens) + network.pair_flops(pairs)
        write = network.gradient_flops(tokens) + network.total_flops(tokens)
        return {
            **super().flops_by_part(tokens),
            "memory rates": tokens * 2 * self.rate.weight.numel(),
            "memory read": self.shell.heads * read,
            "memory gradient": self.shell.heads * write,
        }


register_memory(MemoryKind("ttt_linear", TTTOptions, TTTMixer))
register_memory(MemoryKind("ttt_mlp", TTTMLPOptions, TTTMixer))
