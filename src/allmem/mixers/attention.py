"""``window`` and ``full``: a pretrained attention under the mixer contract.

The attention's own module does what it was trained to do (projections, q and k norms, RoPE, output
projection); only the step in between, which query sees which key, is replaced, through
transformers' ``AttentionInterface``. So every decoder that follows its conventions works without a
copy of its code.

A query sees a sink as if it stood just before the window: for sink keys outside the window its
rotary position is min(t, S + W - 1) (StreamingLLM's positions in the cache; paper section 3.2 names
sinks).

Letters: R rows, N slots, D hidden size, Q query heads, K KV heads, E head size.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from allmem.attention import finds_rows, full_attention, window_attention, window_mass
from allmem.attention.rotary import Rotary, rotate
from allmem.attention.state import GrowingState, RingState
from allmem.config import WindowConfig
from allmem.errors import AllMemError
from allmem.layout import Layout
from allmem.memory.projections import Beside, Features, Leaving, Wanted
from allmem.mixers.base import Capabilities, Mixer
from allmem.state import State

__all__ = [
    "ATTENTION_NAME",
    "AttentionMixer",
    "AttentionShape",
    "FullMixer",
    "WindowMixer",
    "causal_pairs",
]

ATTENTION_NAME = "allmem"
"""The name under which transformers' attention modules find ``_attend``."""


@dataclass(frozen=True)
class AttentionShape:
    """Sizes of an attention."""

    hidden_size: int
    query_heads: int
    kv_heads: int
    head_dim: int


def causal_pairs(tokens: int, most: int | None = None) -> int:
    """(query, key) pairs of a document of ``tokens`` tokens in which each sees itself and what came
    before it, in all at most ``most`` keys: the sum of min(t, most) for t from 1 to ``tokens``."""
    growing = tokens if most is None else min(tokens, most)
    return growing * (growing + 1) // 2 + (tokens - growing) * (most or 0)


@dataclass
class _Tap:
    """Carries one call's state past the attention's own forward, and the results back."""

    mixer: AttentionMixer
    state: State
    layout: Layout
    wanted: Wanted
    features: Features | None = None


class AttentionMixer(Mixer):
    """A pretrained attention that remembers keys and values in a ``State``.

    Args:
        core: the attention module of a transformers decoder layer, whose config names
            ``ATTENTION_NAME`` as its attention implementation.
        shape: its sizes.
        rotary: its RoPE; ``None`` for a layer without positions.
    """

    capabilities = Capabilities(trainable=False)
    rotates: ClassVar[bool] = True
    """Whether ``mix`` sees queries and keys after RoPE, at their positions in the document."""

    def __init__(self, core: nn.Module, shape: AttentionShape, rotary: Rotary | None) -> None:
        super().__init__()
        self.core = core
        self.shape = shape
        self.rotary = rotary

    def forward(
        self, x: Tensor, state: State, layout: Layout, features: Features | None = None
    ) -> tuple[Tensor, State]:
        y, state, _ = self.attend(x, state, layout)
        return y, state

    def attend(
        self,
        x: Tensor,
        state: State,
        layout: Layout,
        wanted: Wanted = Wanted.NOTHING,
        table: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, State, Features | None]:
        """``forward``, and as much of the attention's features as is wanted.

        Args:
            table: cos and sin to rotate by, [R, N, P] each, in place of ``rotary``'s.

        Raises:
            AllMemError: if what is wanted is a window's, and this is none.
        """
        tap = _Tap(self, state, layout, wanted)
        if table is None:
            table = self._table(x, layout)
        y = self.core(
            hidden_states=x, position_embeddings=table, attention_mask=None, allmem_tap=tap
        )[0]
        return y, tap.state, tap.features

    def init_state(
        self,
        rows: int,
        dtype: torch.dtype,
        device: torch.device,
        window: WindowConfig | None = None,
    ) -> State:
        """As in the contract; ``window``, if given, is what the state will be read with, for those
        attentions whose window is not their own."""
        raise NotImplementedError

    def mix(
        self, q: Tensor, k: Tensor, v: Tensor, state: State, layout: Layout, scale: float
    ) -> tuple[Tensor, State]:
        """Which query sees which key. q [R, Q, N, E], k and v [R, K, N, E], q and k after RoPE if
        ``rotates``."""
        raise NotImplementedError

    def features_of(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Features:
        """The projections before RoPE, with heads side by side again."""
        if self.rotary and self.rotates:
            back = self.rotary.back_to_start(layout, q.dtype)
            q, k = rotate(q, back), rotate(k, back)
        q, k, v = (t.transpose(1, 2).flatten(2) for t in (q, k, v))
        output: Any = self.core.o_proj
        return Features(q, k, v, output.weight)

    def leaving(self, k: Tensor, v: Tensor, state: State, layout: Layout) -> Leaving:
        """What the window loses while ``mix`` reads the same keys and values.

        Raises:
            AllMemError: for an attention without a window.
        """
        raise AllMemError(
            f"{type(self).__name__} has no window: a memory that goes on with what one loses, or "
            "joins its softmax, cannot stand beside it"
        )

    def beside(self, q: Tensor, k: Tensor, state: State, layout: Layout, scale: float) -> Beside:
        """What ``mix`` will do with the same arguments, but for what it reads.

        Raises:
            AllMemError: for an attention without a window.
        """
        raise AllMemError(f"{type(self).__name__} has no window whose softmax a memory could join")

    def pairs(self, tokens: int) -> int:
        """(query, key) pairs that ``tokens`` tokens from the start of a document make."""
        raise NotImplementedError

    def device_bytes(self, tokens: int, dtype: torch.dtype) -> int:
        """Of ``state_bytes`` those on the device that computes, and what it fetches from elsewhere
        for one token."""
        return self.state_bytes(tokens, dtype)

    def _table(self, x: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """cos and sin, [R, N, P] each, by which the module rotates its queries and keys."""
        if self.rotary is None:
            return x, x
        if self.rotates:
            return self.rotary.at_positions(layout, x.dtype)
        one = x.new_ones(()).expand(*x.shape[:2], 2 * len(self.rotary.frequencies))
        return one, torch.zeros_like(one)

    def flops(self, tokens: int) -> int:
        return sum(self.flops_by_part(tokens).values())

    def flops_by_part(self, tokens: int) -> dict[str, int]:
        """Two for every weight of a projection (norm scales have one dimension); for every pair
        the score and the weighted sum, two for every feature of each query head."""
        weights = sum(p.numel() for p in self.core.parameters() if p.dim() == 2)
        features = self.shape.query_heads * self.shape.head_dim
        return {
            "attention projections": 2 * weights * tokens,
            "attention scores": 4 * features * self.pairs(tokens),
        }

    def _kv_bytes(self, keys: int, dtype: torch.dtype) -> int:
        return 2 * self.shape.kv_heads * self.shape.head_dim * keys * dtype.itemsize


class WindowMixer(AttentionMixer):
    """Attention to the last ``window`` tokens and the first ``sinks``.

    Args:
        window: W and S; ``layout.window``, if set and ``fixed`` is not, takes its place.
        fixed: for layers that were local before conversion: their window is their own.
    """

    capabilities = Capabilities(constant_state=True, trainable=False)

    def __init__(
        self,
        core: nn.Module,
        shape: AttentionShape,
        rotary: Rotary | None,
        window: WindowConfig,
        fixed: bool = False,
    ) -> None:
        super().__init__(core, shape, rotary)
        self.window = window
        self.fixed = fixed

    def window_of(self, asked: WindowConfig | None) -> WindowConfig:
        """The window that is read with where a call asks for another, or for none."""
        return self.window if self.fixed or asked is None else asked

    def init_state(
        self,
        rows: int,
        dtype: torch.dtype,
        device: torch.device,
        window: WindowConfig | None = None,
    ) -> RingState:
        kv_heads, size = self.shape.kv_heads, self.shape.head_dim
        return RingState.empty(rows, kv_heads, size, size, self.window_of(window), dtype, device)

    def rows_of(self, pool: State, slots: Tensor, layout: Layout) -> State:
        assert isinstance(pool, RingState)
        return pool.rows_in_place(slots) if finds_rows(pool, layout) else pool.select(slots)

    def periods(self, layout: Layout) -> frozenset[int]:
        return frozenset()

    def mix(
        self, q: Tensor, k: Tensor, v: Tensor, state: State, layout: Layout, scale: float
    ) -> tuple[Tensor, State]:
        assert isinstance(state, RingState)
        window = self.window_of(layout.window)
        q_sink = self.sink_queries(q, layout)
        return window_attention(q, q_sink, k, v, state, layout, window, scale=scale)

    def sink_queries(self, q: Tensor, layout: Layout) -> Tensor | None:
        """The queries [R, Q, N, E] as the sinks meet them; ``None`` where they need no turning."""
        if self.rotary is None:
            # Without positions a query sees a sink from everywhere alike.
            return q
        window = self.window_of(layout.window)
        limit = window.sinks + window.window - 1
        back = self.rotary.back_to_window(layout, limit, q.dtype) if window.sinks else None
        return None if back is None else rotate(q, back)

    def leaving(self, k: Tensor, v: Tensor, state: State, layout: Layout) -> Leaving:
        assert isinstance(state, RingState)
        window = self.window_of(layout.window)
        wide = torch.promote_types(k.dtype, torch.float32)
        keys, values = (t.to(wide) for t in state.leaving(k, v, layout, window))
        if self.rotary is not None:
            keys = rotate(keys, self.rotary.back_to_start(layout, wide, window.window))
        leaves = layout.valid & (layout.positions - window.window >= window.sinks)
        return Leaving(keys, values, leaves)

    def beside(self, q: Tensor, k: Tensor, state: State, layout: Layout, scale: float) -> Beside:
        assert isinstance(state, RingState)
        window = self.window_of(layout.window)
        far = q
        if self.rotary is not None:
            limit = window.sinks + window.window - 1
            back = self.rotary.back_to_window(layout, limit, q.dtype)
            far = q if back is None else rotate(q, back)
        mass = window_mass(q, far, k, state, layout, window, scale=scale)
        # What was read is not known yet.
        return Beside(q, mass, far.to(torch.promote_types(q.dtype, torch.float32)) * scale)

    def state_bytes(self, tokens: int, dtype: torch.dtype) -> int:
        return self._kv_bytes(self.window.window + self.window.sinks, dtype)

    def pairs(self, tokens: int) -> int:
        return causal_pairs(tokens, self.window.window + self.window.sinks)


class FullMixer(AttentionMixer):
    """Attention to everything: the teacher's own. Its state grows."""

    capabilities = Capabilities(constant_state=False, trainable=False)

    def init_state(
        self,
        rows: int,
        dtype: torch.dtype,
        device: torch.device,
        window: WindowConfig | None = None,
    ) -> GrowingState:
        kv_heads, size = self.shape.kv_heads, self.shape.head_dim
        return GrowingState.empty(rows, kv_heads, size, size, dtype, device)

    def mix(
        self, q: Tensor, k: Tensor, v: Tensor, state: State, layout: Layout, scale: float
    ) -> tuple[Tensor, State]:
        assert isinstance(state, GrowingState)
        return full_attention(q, k, v, state, layout, scale=scale)

    def state_bytes(self, tokens: int, dtype: torch.dtype) -> int:
        return self._kv_bytes(tokens, dtype)

    def pairs(self, tokens: int) -> int:
        return causal_pairs(tokens)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    allmem_tap: _Tap | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The attention function that a converted model's attention modules call."""
    if allmem_tap is None:
        raise AllMemError(
            f"{type(module).__name__} was called without AllMem's state: call the "
            "AllMemForCausalLM "
            "around it, not the base model inside"
        )
    if softcap is not None or dropout:
        raise AllMemError(
            f"{type(module).__name__} asks for softcap = {softcap}, dropout = {dropout}, which the "
            "window attention does not compute"
        )
    tap = allmem_tap
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    mixer, features, leaving, beside = tap.mixer, None, None, None
    # Before the state is consumed.
    if tap.wanted >= Wanted.FEATURES:
        features = mixer.features_of(query, key, value, tap.layout)
    if tap.wanted >= Wanted.LEAVING:
        leaving = mixer.leaving(key, value, tap.state, tap.layout)
    if tap.wanted >= Wanted.BESIDE:
        beside = mixer.beside(query, key, tap.state, tap.layout, scale)
    y, tap.state = mixer.mix(query, key, value, tap.state, tap.layout, scale)
    if features is not None:
        beside = beside and dataclasses.replace(beside, read=y)
        tap.features = dataclasses.replace(features, leaving=leaving, beside=beside)
    return y.transpose(1, 2), None


AttentionInterface.register(ATTENTION_NAME, _attend)
