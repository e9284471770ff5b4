"""The two operations, and the one place that picks who computes them.

``blocks`` runs everywhere, ``flex`` on GPUs (forward alone on a CPU), ``naive`` is the definition.
A call of one token takes the same path in the first two: ``decode``, or our kernel for it if that
was asked for (``allmem.kernels``). Callers see one function for each attention: padding is kept out
and states are made here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from allmem.attention import blocks, decode, flex, kernels, naive
from allmem.attention.state import GrowingState, RingState
from allmem.config import WindowConfig
from allmem.errors import AllMemError
from allmem.layout import Layout
from allmem.state import may_write
from allmem.switch import Switch, one_of

__all__ = [
    "BACKENDS",
    "finds_rows",
    "full_attention",
    "use_backend",
    "window_attention",
    "window_mass",
]

BACKENDS = ("blocks", "flex", "naive")

_known = one_of("attention backend", BACKENDS)
_switch = Switch(_known)
use_backend = _switch.use
"""Force a backend for all calls inside the block: for tests and for finding faults.

Raises:
    AllMemError: if there is no such backend.
"""


def window_attention(
    q: Tensor,
    q_sink: Tensor | None,
    k: Tensor,
    v: Tensor,
    state: RingState | None,
    layout: Layout,
    window: WindowConfig,
    *,
    scale: float,
    backend: str | None = None,
) -> tuple[Tensor, RingState]:
    """Attention to the sinks and to the last W tokens (paper section 3.2).

    A query at document position t sees keys j <= t with t - j < W or j < S, each once. It sees a
    sink as if it stood just before the window: sinks are scored with ``q_sink`` (the positions in
    the cache of StreamingLLM, arXiv 2309.17453, section 3.2).

    Args:
        q: [R, Q, N, E], queries rotated at their position t.
        q_sink: [R, Q, N, E], the same queries rotated at min(t, S + W - 1). ``None`` if there are
            no sinks or no query of the call lies beyond S + W - 1: up to there both are equal.
        k: [R, K, N, E], keys rotated at their position; Q is a multiple of K.
        v: [R, K, N, Ev].
        state: what earlier calls left; ``None`` for nothing. It is consumed: without gradients it
            is written in place, with gradients a copy is written and gradients flow through it. One
            whose rows lie in a pool is for calls that ``finds_rows`` allows.
        layout: where the rows' tokens stand. Slots beyond a row's length write nothing, influence
            nothing, and their outputs are zero, whatever they hold.
        window: S and W.
        scale: factor on the scores.
        backend: one of ``BACKENDS``; ``None`` picks one.

    Returns:
        The output [R, Q, N, Ev], and the state after the call.

    Raises:
        AllMemError: if the backend is unknown or cannot compute this call, or if the shapes or
            ``q_sink`` do not fit the layout.
    """
    _check(q, k, v, layout)
    limit = window.sinks + window.window - 1
    if q_sink is None and window.sinks and layout.reaches_beyond(limit):
        raise AllMemError(
            f"window_attention: q_sink is None but queries reach position "
            f"{int(layout.end.max()) - 1}, beyond S + W - 1 = {limit}; give the re-positioned "
            "queries"
        )
    name = _pick(backend, q, k, v)
    if state is None:
        state = RingState.empty(
            k.shape[0], k.shape[1], k.shape[3], v.shape[3], window, k.dtype, k.device
        )
    if q.shape[2] == 0:
        return v.new_zeros(*q.shape[:3], v.shape[3]), state
    if name == "naive":
        assert state.at is None
        return naive.window_attention(q, q_sink, k, v, state, layout, window, scale=scale)
    clean_sink = None if q_sink is None else _without_padding(q_sink, layout)
    q, k, v = (_without_padding(x, layout) for x in (q, k, v))
    if q.shape[2] == 1:
        # Whoever left the rows where they lie has asked before.
        by_kernel = state.at is not None or finds_rows(state, layout)
        compute = kernels.window_attention if by_kernel else decode.window_attention
    else:
        assert state.at is None
        compute = flex.window_attention if name == "flex" else blocks.window_attention
    out, state = compute(q, clean_sink, k, v, state, layout, window, scale=scale)
    return _without_padding(out, layout), state


def finds_rows(state: RingState, layout: Layout) -> bool:
    """Whether ``window_attention`` computes a call by the kernel that finds rows in a pool where
    they lie (``RingState.rows_in_place``).

    Args:
        state: of the rows, or of the pool.
    """
    one_token = layout.slots == 1 and layout.full and _switch.forced != "naive"
    return one_token and may_write(state.keys) and kernels.chosen(state)


def window_mass(
    q: Tensor,
    q_sink: Tensor | None,
    k: Tensor,
    state: RingState,
    layout: Layout,
    window: WindowConfig,
    *,
    scale: float,
) -> Tensor:
    """What the weights of ``window_attention`` were divided by: for each query the logarithm of the
    sum of exp(score) over all keys that it sees. With it more keys can join the softmax afterwards.

    The scores are computed a second time, by plain products on every device. Arguments as for
    ``window_attention``; ``state`` is the one *before* that call, and is left as it is.

    Returns:
        [R, Q, N], at least fp32, finite in padding slots.
    """
    _check(q, k, k, layout)
    if _switch.forced == "naive":
        return naive.window_mass(q, q_sink, k, state, layout, window, scale=scale)
    clean_sink = None if q_sink is None else _without_padding(q_sink, layout)
    q, k = _without_padding(q, layout), _without_padding(k, layout)
    return blocks.window_mass(q, clean_sink, k, state, layout, window, scale=scale)


def full_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: GrowingState | None,
    layout: Layout,
    *,
    scale: float,
    backend: str | None = None,
) -> tuple[Tensor, GrowingState]:
    """Causal attention to all tokens, for layers that keep it. See ``window_attention``.

    Args:
        q: [R, Q, N, E], queries rotated at their position.
        k: [R, K, N, E], keys rotated at their position; Q is a multiple of K.
        v: [R, K, N, Ev].
        state: what earlier calls left; ``None`` for nothing.
        layout: where the rows' tokens stand.
        scale: factor on the scores.
        backend: one of ``BACKENDS``; ``None`` picks one.

    Returns:
        The output [R, Q, N, Ev], and the state after the call.

    Raises:
        AllMemError: if the backend is unknown or cannot compute this call, or if the shapes do not
            fit the layout.
    """
    _check(q, k, v, layout)
    # From the start of a document torch's own causal attention is faster than any masked one.
    plain = layout.aligned and int(layout.start[0]) == 0
    name = _pick(backend, q, k, v, prefer="blocks" if plain else "flex")
    if state is None:
        state = GrowingState.empty(
            k.shape[0], k.shape[1], k.shape[3], v.shape[3], k.dtype, k.device
        )
    if q.shape[2] == 0:
        return v.new_zeros(*q.shape[:3], v.shape[3]), state
    if name == "naive":
        return naive.full_attention(q, k, v, state, layout, scale=scale)
    q, k, v = (_without_padding(x, layout) for x in (q, k, v))
    compute = flex.full_attention if name == "flex" and q.shape[2] > 1 else blocks.full_attention
    out, state = compute(q, k, v, state, layout, scale=scale)
    return _without_padding(out, layout), state


def _pick(asked: str | None, q: Tensor, k: Tensor, v: Tensor, prefer: str = "flex") -> str:
    """The backend that the call names, else the forced one, else ``prefer`` on a GPU if it can."""
    name = asked or _switch.forced
    if name is None:
        fused = q.device.type == "cuda" and flex.cannot_run(q, k, v) is None
        return prefer if fused else "blocks"
    reason = flex.cannot_run(q, k, v) if _known(name) == "flex" else None
    if reason is not None:
        raise AllMemError(f"attention backend 'flex' cannot compute this call: {reason}")
    return name


def _check(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> None:
    R, Q, N, E = q.shape
    K = k.shape[1]
    if k.shape != (R, K, N, E) or v.shape[:3] != (R, K, N) or Q % K:
        raise AllMemError(
            f"attention: q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} must be "
            "[R, Q, N, E], [R, K, N, E] and [R, K, N, Ev] with Q a multiple of K"
        )
    if layout.rows != R or layout.slots != N:
        raise AllMemError(
            f"attention: q has {R} rows of {N} slots, the layout {layout.rows} of {layout.slots}"
        )


def _without_padding(x: Tensor, layout: Layout) -> Tensor:
    """x [R, ?, N, ?] with zeros in padding slots, by selection: what they hold may be no number."""
    if layout.full:
        return x
    return torch.where(layout.valid[:, None, :, None], x, x.new_zeros(()))
