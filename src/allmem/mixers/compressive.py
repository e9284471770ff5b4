"""``compressive``: pooled keys and values, after the Compressive Transformer (Rae et al. 2020,
arXiv:1911.05507).

    every c written tokens:   K = pool(k_1 .. k_c),  V = pool(v_1 .. v_c)
    read:                     o_t = softmax(q_t K^T / sqrt(d)) V   over the M last pairs

Groups of c tokens begin with the first token that is written: the first of a document, or with
``write_scope = evicted`` the first one behind the sinks. A pair can be read by the token with which
its group is full, and is dropped when M newer ones are there. What an open group has is a sum (or a
maximum) and no tokens. With no pair yet the memory says nothing, 0.

Unlike the paper's: keys and values are pooled, not the hidden states before their projection (for a
mean that is the same); its convolution mixes channels, ours weighs each token's by itself, since
the projections before it mix them; pairs have a softmax of their own and no positions; and they
learn from what everything learns from, since in this slot the gradient reaches them, not from its
reconstruction loss. The output norm is the one that all memories share.

Letters: R rows, N slots of a call, D hidden size, H heads, d size of keys, dv of values, c rate,
M slots of the memory, G groups that a call may touch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from allmem.config import HeadOptions, KeyNorm, WriteScope, require_choice, require_positive
from allmem.layout import Layout
from allmem.memory.projections import AttentionWeights
from allmem.memory.state import accumulation_dtype
from allmem.mixers.heads import HeadMixer, Heads, HeadState
from allmem.mixers.registry import MemoryKind, register_memory
from allmem.state import may_write

__all__ = ["CompressiveMixer", "CompressiveOptions", "CompressiveState"]

Pool = Literal["mean", "max", "conv"]

BLOCK = 256
"""Tokens that are computed together: they see M pairs and those that the block makes."""


@dataclass(frozen=True)
class CompressiveOptions(HeadOptions):
    """Options of the memory of pooled keys and values.

    Raises:
        AllMemError: on a value outside its range.
    """

    state_sizes: ClassVar[tuple[str, ...]] = ("slots",)

    write_scope: WriteScope = "evicted"
    """Whether only tokens that attention no longer sees are pooled (as in the paper), or all."""
    activation: bool = False
    """Whether q, k and v go through SiLU; off, as in attention."""
    qk_norm: KeyNorm = "rms"
    """What q and k are divided by; with a length of one (``l2``) no softmax could choose."""
    rate: int = 4
    """Tokens that are pooled into one: c."""
    pool: Pool = "mean"
    """How: their mean, their maximum in every channel, or a learned weight for every place in the
    group and channel, which starts as the mean."""
    slots: int = 512
    """Pairs that are kept: M."""

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        require_positive(name, rate=self.rate, slots=self.slots)
        require_choice(name, "pool", self.pool, get_args(Pool))


@dataclass
class CompressiveState(HeadState):
    """What one sequence leaves behind."""

    keys: Tensor
    """[R, H, M, d], in the dtype of the hidden states; pair number g lies in slot g % M."""
    values: Tensor
    """[R, H, M, dv]."""
    open_keys: Tensor
    """[R, H, d], of the tokens of the open group, in the accumulation dtype: their weighted sum, or
    their maximum (minus infinity without tokens)."""
    open_values: Tensor
    """[R, H, dv]."""
    written: Tensor
    """[R] int64, tokens written so far."""


@dataclass(frozen=True)
class _Groups:
    """Which tokens of a block fall into which group, counted from the open one."""

    source: Tensor
    """[R, G, c], the slot that stands at each place; 0 where none does."""
    filled: Tensor
    """[R, G, c] bool, whether one does."""
    done: Tensor
    """[R], groups that were full before the block."""
    full: Tensor
    """[R, N], groups that are full once a slot is written, all in all."""
    written: Tensor
    """[R], tokens written after the block."""

    @classmethod
    def of(cls, keep: Tensor, written: Tensor, rate: int) -> _Groups:
        """Args:
        keep: [R, N] bool, whether a slot writes.
        written: [R], tokens written before.
        """
        count = (keep.shape[1] + rate - 1) // rate + 1  # G
        # The slots that write, in their order.
        order = torch.argsort((~keep).to(torch.int8), dim=1, stable=True)
        place = torch.arange(count * rate, device=keep.device) - (written % rate)[:, None]
        filled = (place >= 0) & (place < keep.sum(1, keepdim=True))
        source = order.gather(1, place.clamp(0, keep.shape[1] - 1)) * filled
        after = written[:, None] + keep.cumsum(1)
        shape = (-1, count, rate)
        return cls(
            source.view(shape), filled.view(shape), written // rate, after // rate, after[:, -1]
        )


class CompressiveMixer(HeadMixer[CompressiveState]):
    """Attention to pooled keys and values."""

    options: CompressiveOptions

    def __init__(
        self, hidden_size: int, options: CompressiveOptions, attention: AttentionWeights
    ) -> None:
        super().__init__(hidden_size, options, attention)
        if options.pool == "conv":
            shell, rate = self.shell, options.rate
            self.pool_keys = nn.Parameter(torch.full((shell.heads, rate, shell.key_dim), 1 / rate))
            self.pool_values = nn.Parameter(
                torch.full((shell.heads, rate, shell.value_dim), 1 / rate)
            )

    def begin(self, rows: int, dtype: torch.dtype, device: torch.device) -> CompressiveState:
        shell, slots = self.shell, self.options.slots
        keys = torch.zeros(rows, shell.heads, slots, shell.key_dim, dtype=dtype, device=device)
        values = torch.zeros(rows, shell.heads, slots, shell.value_dim, dtype=dtype, device=device)
        wide = accumulation_dtype(dtype)
        open_keys = torch.full((rows, shell.heads, shell.key_dim), self._nothing).to(device, wide)
        open_values = torch.full((rows, shell.heads, shell.value_dim), self._nothing)
        written = torch.zeros(rows, dtype=torch.int64, device=device)
        return CompressiveState(keys, values, open_keys, open_values.to(device, wide), written)

    @property
    def _nothing(self) -> float:
        """What pools to what the others pool to."""
        return -torch.inf if self.options.pool == "max" else 0.0

    def lag(self, layout: Layout) -> int:
        return self.options.rate - 1

    def mix(
        self, heads: Heads, state: CompressiveState, layout: Layout
    ) -> tuple[Tensor, CompressiveState]:
        keep = heads.written.keep if heads.written.keep is not None else layout.valid
        q = heads.q * self.shell.key_dim**-0.5
        pieces = []
        for first in range(0, layout.slots, BLOCK):
            now = slice(first, first + BLOCK)
            read, state = self._block(
                q[:, :, now], heads.k[:, :, now], heads.v[:, :, now], keep[:, now], state
            )
            pieces.append(read)
        return torch.cat(pieces, 2), state

    def _block(
        self, q: Tensor, k: Tensor, v: Tensor, keep: Tensor, state: CompressiveState
    ) -> tuple[Tensor, CompressiveState]:
        """Write and read some tokens."""
        groups = _Groups.of(keep, state.written, self.options.rate)
        taps: tuple[Tensor | None, Tensor | None] = None, None
        if self.options.pool == "conv":
            taps = self.pool_keys.to(k.dtype), self.pool_values.to(v.dtype)
        keys = self._pool(k, groups, state.open_keys, taps[0])  # [R, H, G, d]
        values = self._pool(v, groups, state.open_values, taps[1])
        left = (groups.written // self.options.rate - groups.done)[:, None, None, None]
        open_keys, open_values = (
            x.gather(2, left.expand(-1, x.shape[1], 1, x.shape[3]))[:, :, 0] for x in (keys, values)
        )
        # The maximum of no tokens is no number to multiply with; and a pair is read as it is kept.
        keys, values = (
            x.masked_fill(x == -torch.inf, 0).to(state.keys.dtype) for x in (keys, values)
        )
        read = self._read(q, keys, values, groups, state)
        kept = self._keep(keys, values, groups, state)
        return read, CompressiveState(*kept, open_keys, open_values, groups.written)

    def _pool(self, x: Tensor, groups: _Groups, begun: Tensor, taps: Tensor | None) -> Tensor:
        """x [R, H, N, d] to [R, H, G, d], the open group with what it had: [R, H, d]."""
        R, H, _, d = x.shape
        index = groups.source.flatten(1)[:, None, :, None].expand(-1, H, -1, d)
        tokens = x.gather(2, index).view(R, H, *groups.source.shape[1:], d)
        tokens = torch.where(groups.filled[:, None, ..., None], tokens, self._nothing)
        if self.options.pool == "max":
            pooled = tokens.amax(3)
            first = torch.maximum(pooled[:, :, :1], begun[:, :, None])
        else:
            weight = 1 / self.options.rate if taps is None else taps[:, None]  # [H, 1, c, d]
            pooled = (tokens * weight).sum(3)
            first = pooled[:, :, :1] + begun[:, :, None]
        return torch.cat([first, pooled[:, :, 1:]], 2)

    def _read(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        groups: _Groups,
        state: CompressiveState,
    ) -> Tensor:
        """[R, H, N, dv]: attention to the pairs that were kept and to those of the block."""
        slots = self.options.slots
        slot = torch.arange(slots, device=q.device)
        made = groups.done[:, None]
        # The number of the pair in each slot, and of those of the block.
        old = made - 1 - (made - 1 - slot) % slots
        new = made + torch.arange(keys.shape[2], device=q.device)
        number = torch.cat([old, new], 1)[:, None]  # [R, 1, M + G]
        full = groups.full[..., None]
        seen = (number >= 0) & (number < full) & (number >= full - slots)  # [R, N, M + G]
        every = torch.cat([state.keys, keys], 2).to(q.dtype)
        scores = (q @ every.mT).masked_fill(~seen[:, None], -torch.inf)
        # Where there is no pair yet all weights are 0, their derivatives too.
        some = seen.any(2)[:, None, :, None]
        weights = torch.softmax(torch.where(some, scores, 0), -1) * some
        read: Tensor = weights @ torch.cat([state.values, values], 2).to(q.dtype)
        return read

    def _keep(
        self, keys: Tensor, values: Tensor, groups: _Groups, state: CompressiveState
    ) -> tuple[Tensor, Tensor]:
        """The pairs after the block."""
        slots = self.options.slots
        most = min(keys.shape[2], slots)
        last = groups.written // self.options.rate
        # The last few numbers fall into as many slots; those that are not new stay as they are.
        number = last[:, None] + torch.arange(-most, 0, device=keys.device)
        fresh = (number >= groups.done[:, None])[:, None, :, None]
        source = (number - groups.done[:, None]).clamp_min(0)
        kept = []
        for old, new in ((state.keys, keys), (state.values, values)):
            shape = (-1, old.shape[1], -1, old.shape[3])
            target = (number % slots)[:, None, :, None].expand(shape)
            taken = new.gather(2, source[:, None, :, None].expand(shape))
            taken = torch.where(fresh, taken, old.gather(2, target))
            kept.append(
                old.scatter_(2, target, taken) if may_write(old) else old.scatter(2, target, taken)
            )
        return kept[0], kept[1]

    def carried(self, old: CompressiveState, new: CompressiveState) -> CompressiveState:
        """The pairs; the open group begins anew."""
        written = old.written - old.written % self.options.rate
        return CompressiveState(old.keys, old.values, new.open_keys, new.open_values, written)

    def state_bytes(self, tokens: int, dtype: torch.dtype) -> int:
        shell = self.shell
        pair = shell.heads * (shell.key_dim + shell.value_dim)
        group = pair * accumulation_dtype(dtype).itemsize
        count = torch.int64.itemsize
        own = self.options.slots * pair * dtype.itemsize + group + count
        return own + super().state_bytes(tokens, dtype)

    def flops_by_part(self, tokens: int) -> dict[str, int]:
        """Scores and weighted sums of the pairs that there are if every token is written as it is
        read."""
        shell, options = self.shell, self.options
        growing = min(tokens // options.rate, options.slots)
        # Token number t, counted from 1, sees min(t // c, M) pairs.
        pairs = growing * (tokens + 1) - options.rate * growing * (growing + 1) // 2
        return {
            **super().flops_by_part(tokens),
            "memory read": shell.heads * 2 * pairs * (shell.key_dim + shell.value_dim),
        }


register_memory(MemoryKind("compressive", CompressiveOptions, CompressiveMixer))
