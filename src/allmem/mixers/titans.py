"""``titans``: a memory network trained on what it reads, with momentum and forgetting (Behrouz et
al. 2025, arXiv:2501.00663).

    l_t = 1/2 |M(k_t; W) - v_t|^2
    S_t = eta_t S_{t-1} - theta_t dl_t/dW           surprise, past and present
    W_t = (1 - alpha_t) W_{t-1} + S_t               o_t = M(q_t; W_t)

M has ``layers`` matrices with a GELU between any two. eta, theta and alpha are one number for each
token and head, from its hidden state. The gradients of a mini-batch are all taken at the weights of
its start (section 3.2 of the paper), and W_t is what the token itself and all before it made of
them: each token of a mini-batch meets weights of its own, which are never made (``fast_mlp``).

Mini-batches count from a document's first token, whatever the split of calls. ``fusion`` (see
``allmem.mixers.layer``) makes it the paper's memory as gate, as layer or as context.

What differs from the paper: the memory as context is written with what enters the attention, not
with what leaves it, and is read after that; no persistent tokens, since attention keeps its sinks;
theta is at most ``base_lr`` for a whole mini-batch and starts small, so that the frequent words of
a text do not overshoot.

Letters: R rows, N slots of a call, D hidden size, H heads, d size of keys, dv of values, n tokens
of a round.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from allmem.config import HeadOptions, require_positive
from allmem.errors import AllMemError
from allmem.layout import Layout
from allmem.memory.projections import AttentionWeights
from allmem.memory.state import accumulation_dtype
from allmem.memory.unit import Rate
from allmem.mixers.fast_mlp import FastMLP, first_weights, zeros_like
from allmem.mixers.heads import HeadMixer, Heads, HeadState
from allmem.mixers.registry import MemoryKind, register_memory
from allmem.mixers.titans_rule import TitansMemory, TitansRates, titans_rule

__all__ = ["TitansMixer", "TitansOptions", "TitansState"]

START_THETA = math.log(0.1 / 0.9)
"""A tenth of the largest theta: with eta = 1/2, a mini-batch of one and the same key, of length
one, comes a fifth of the way to its value. Twice as much learns faster with two matrices, and can
diverge with three."""
START_ALPHA = -7.0
"""A memory that learns nothing new loses 60 % of its weights in a thousand tokens."""


@dataclass(frozen=True)
class TitansOptions(HeadOptions):
    """Options of the Titans memory.

    Raises:
        AllMemError: on a value outside its range.
    """

    state_sizes: ClassVar[tuple[str, ...]] = ("key_dim", "width", "value_dim")

    layers: int = 2
    """Matrices of M; one makes it linear."""
    width: int | None = None
    """Size of the vectors between them; ``None`` for 4 d."""
    mini_batch: int = 16
    """Tokens whose gradients are taken at the same weights."""
    base_lr: float = 1.0
    """The largest theta, times the tokens of a mini-batch: their gradients add up."""

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        require_positive(name, layers=self.layers, width=self.width, mini_batch=self.mini_batch)
        if not self.base_lr > 0:
            raise AllMemError(f"{name}: base_lr = {self.base_lr!r} must be positive")

    def sized(self, hidden_size: int, kv_heads: int) -> Self:
        options = super().sized(hidden_size, kv_heads)
        assert options.key_dim is not None
        return options.replace(width=options.width or 4 * options.key_dim)


@dataclass
class TitansState(HeadState):
    """What one sequence leaves behind."""

    memory: TitansMemory


class TitansMixer(HeadMixer[TitansState]):
    """A network for each head, trained with momentum and forgetting on what it reads."""

    # Small numbers whose rounding matters: rates and the start of the fast weights.
    keep_fp32 = ("theta", "eta", "alpha", "initial")
    options: TitansOptions

    def __init__(
        self, hidden_size: int, options: TitansOptions, attention: AttentionWeights
    ) -> None:
        super().__init__(hidden_size, options, attention)
        heads = self.shell.heads
        assert self.options.width is not None
        between = (self.options.width,) * (options.layers - 1)
        self.network = FastMLP((self.shell.key_dim, *between, self.shell.value_dim))
        self.theta = Rate(hidden_size, heads)
        self.eta = Rate(hidden_size, heads)
        self.alpha = Rate(hidden_size, heads)
        self.initial = self.network.starts(heads)
        self.reset_network()

    @torch.no_grad()
    def reset_network(self) -> None:
        """Starting values of rates and fast weights, the latter drawn from torch's global
        generator."""
        self.theta.bias.fill_(START_THETA)
        self.alpha.bias.fill_(START_ALPHA)
        for weight in self.initial.values():
            weight.normal_(std=weight.shape[-1] ** -0.5)

    def begin(self, rows: int, dtype: torch.dtype, device: torch.device) -> TitansState:
        weights, opened = (first_weights(dict(self.initial), rows, dtype) for _ in range(2))
        return TitansState(TitansMemory(weights, zeros_like(weights), opened))

    def periods(self, layout: Layout) -> frozenset[int]:
        return frozenset((self.options.mini_batch,))

    def mix(self, heads: Heads, state: TitansState, layout: Layout) -> tuple[Tensor, TitansState]:
        read, memory = titans_rule(
            heads.q,
            heads.k,
            heads.v,
            self.rates(heads),
            self.network,
            self.options.mini_batch,
            state.memory,
            layout,
        )
        return read, TitansState(memory)

    def rates(self, heads: Heads) -> TitansRates:
        """theta, eta and alpha of what is written."""
        options = self.options

        def kept(rate: Tensor) -> Tensor:
            """[R, N, H] to [R, H, N, 1], 0 where nothing is written."""
            return heads.kept(rate.to(heads.q.dtype).mT)[..., None]

        theta = options.base_lr / options.mini_batch * heads.mapped(self.theta).sigmoid()
        return TitansRates(
            kept(theta),
            kept(F.logsigmoid(heads.mapped(self.eta))),
            kept(F.logsigmoid(-heads.mapped(self.alpha))),
            kept(torch.ones_like(theta)),
        )

    def carried(self, old: TitansState, new: TitansState) -> TitansState:
        """Weights and momentum; the mini-batch begins anew."""
        weights = old.memory.weights
        opened = {name: w.clone() for name, w in weights.items()}
        return TitansState(TitansMemory(weights, old.memory.momentum, opened))

    def state_bytes(self, tokens: int, dtype: torch.dtype) -> int:
        fast = sum(w.numel() for w in self.initial.values())
        return 3 * fast * accumulation_dtype(dtype).itemsize + super().state_bytes(tokens, dtype)

    def flops_by_part(self, tokens: int) -> dict[str, int]:
        """Of a mini-batch of n tokens, T E and T E_0 are 2 n^3 and 2 n^2; weights and momentum are
        read apart, and get their sums of gradients apart."""
        network, size = self.network, self.options.mini_batch
        batches, rest = divmod(tokens, size)
        pairs = batches * size**2 + rest**2
        rule = 2 * (batches * size**3 + rest**3) + 2 * pairs
        read = 2 * network.total_flops(tokens) + network.pair_flops(pairs)
        write = network.gradient_flops(tokens) + 2 * network.total_flops(tokens)
        heads, parts = self.shell.heads, super().flops_by_part(tokens)
        return {
            **parts,
            "memory rates": parts["memory rates"] + heads * rule,
            "memory read": heads * read,
            "memory gradient": heads * write,
        }


register_memory(MemoryKind("titans", TitansOptions, TitansMixer))
