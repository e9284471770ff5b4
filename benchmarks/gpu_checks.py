"""Whether a device computes what the definitions say: before its speed counts.

- The inner loop against ``allmem.memory.naive`` in float64 on the CPU, on the same inputs: what was
  read, what was written (as a share of how far it moved the weights), outer gradients.
- The window attentions against ``allmem.attention.naive`` in float64.
- A model that reads a text token by token against one that reads it in one call.

An error is the norm of the difference over the norm of what is right. Inputs are random.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from allmem.attention import naive, window_attention
from allmem.attention.state import RingState
from allmem.config import MemoryConfig, WindowConfig
from allmem.layout import Layout
from allmem.memory.inner_loop import inner_loop
from allmem.memory.naive import naive_inner_loop
from allmem.memory.state import MemoryState
from allmem.models.cache import AllMemCache
from allmem.models.decoding import use_decoding
from benchmarks.shapes import Shape, converted

__all__ = ["check_rows"]

CPU = torch.device("cpu")
ROWS = 2
LOOP_LIMITS = {
    torch.bfloat16: {"read": 0.01, "written": 0.02, "gradients": 0.03},
    torch.float32: {"read": 1e-3, "written": 1e-3, "gradients": 1e-3},
}
"""In bfloat16 those of ``docs/layer.md``; in fp32 what its rounding stays far below, and tf32's
does not."""
ATTENTION_LIMITS = {torch.bfloat16: 0.01, torch.float32: 1e-3}
MODEL_LIMITS = {torch.bfloat16: 0.05, torch.float32: 1e-3}
"""Decoding multiplies in another order than reading, and fast weights unrounded."""


@dataclass(frozen=True)
class CheckSizes:
    """How much is checked."""

    heads: int = 8
    head_dim: int = 128
    chunk: int = 256
    window: int = 512
    sinks: int = 16
    tokens: int = 1400
    alone: int = 12
    """Tokens that are read one by one."""


def error(found: Tensor, right: Tensor) -> float:
    """Relative, over everything; not a number if ``found`` holds one."""
    return float((found.detach().double().cpu() - right).norm() / right.norm().clamp_min(1e-300))


def _row(what: str, dtype: torch.dtype, found: float, limit: float) -> dict[str, Any]:
    return {
        "what": what,
        "dtype": str(dtype).removeprefix("torch."),
        "relative error": found,
        "limit": limit,
        # No number is never below.
        "within": "yes" if found <= limit else "NO",
    }


def loop_checks(
    dtype: torch.dtype, device: torch.device, sizes: CheckSizes
) -> Iterator[dict[str, Any]]:
    """The inner loop, in two calls of which the first ends within a chunk."""
    H, d, N = sizes.heads, sizes.head_dim, sizes.tokens
    config = MemoryConfig(heads=H, head_dim=d, width=d, chunk=sizes.chunk)
    rates = 0.05 * 64 / sizes.chunk / d
    given: dict[str, Tensor] = {n: torch.randn(ROWS, N, H, d).to(dtype) for n in "qkv"}
    given["eta"] = rates * torch.randn(ROWS, N, H, 3).mul(0.3).exp()
    given["beta"] = torch.rand(ROWS, N, H)
    for name in ("gate", "up", "down"):
        given[name] = torch.randn(H, d, d) * d**-0.5
    high = {n: t.double().requires_grad_() for n, t in given.items()}
    low = {n: t.to(device).requires_grad_() for n, t in given.items()}
    tokens, matrices = ("q", "k", "v", "eta", "beta"), ("gate", "up", "down")

    exact = [high[n] for n in tokens]
    want, weights, _ = naive_inner_loop(
        exact[0], exact[1], exact[2], exact[3], exact[4], {n: high[n] for n in matrices}, config
    )
    initial = {n: low[n] for n in matrices}
    state, pieces = MemoryState.begin(initial, ROWS, config.momentum), []
    cut = N // 2 + 1
    for first, last in ((0, cut), (cut, N)):
        parts = [low[n][:, first:last] for n in tokens]
        layout = Layout.dense(first, ROWS, last - first, device)
        read, state = inner_loop(
            parts[0], parts[1], parts[2], parts[3], parts[4], state, initial, layout, config
        )
        pieces.append(read)
    got = torch.cat(pieces, 1)
    limits = LOOP_LIMITS[dtype]
    yield _row("inner loop: read", dtype, error(got, want.detach()), limits["read"])
    written = 0.0
    for name in matrices:
        moved = torch.stack([w[name] for w in weights]).detach() - high[name].detach()
        change = state.weights[name].detach().double().cpu() - given[name].double()
        # Not ``max``, which a NaN may pass.
        written = torch.tensor([written, error(change, moved)]).max().item()
    yield _row("inner loop: written", dtype, written, limits["written"])
    probe = torch.randn(want.shape, dtype=torch.float64)
    right = torch.autograd.grad((want * probe).sum(), list(high.values()))
    found = torch.autograd.grad((got.double() * probe.to(device)).sum(), list(low.values()))
    worst = torch.tensor([error(a, b) for a, b in zip(found, right, strict=True)]).max().item()
    yield _row("inner loop: outer gradients", dtype, worst, limits["gradients"])


@torch.no_grad()
def attention_checks(
    dtype: torch.dtype, device: torch.device, sizes: CheckSizes
) -> Iterator[dict[str, Any]]:
    """Both fast window attentions in three calls: from the start, with history, and one token."""
    Q, K, E, N = 2 * sizes.heads, sizes.heads, sizes.head_dim, sizes.tokens
    window, scale = WindowConfig(sizes.window, sizes.sinks), E**-0.5
    q, q_sink = (torch.randn(ROWS, Q, N, E).to(dtype) for _ in range(2))
    # Up to there a query meets sinks at its own position.
    near = sizes.sinks + sizes.window
    q_sink[:, :, :near] = q[:, :, :near]
    k, v = (torch.randn(ROWS, K, N, E).to(dtype) for _ in range(2))
    tensors = (q, q_sink, k, v)

    def run(place: torch.device, precision: torch.dtype, backend: str | None) -> Tensor:
        attend: Any = naive.window_attention
        if backend is not None:
            attend = partial(window_attention, backend=backend)
        state = RingState.empty(ROWS, K, E, E, window, precision, place)
        pieces = []
        for first, last in ((0, N // 2 + 1), (N // 2 + 1, N - 1), (N - 1, N)):
            parts = [x[:, :, first:last].to(place, precision) for x in tensors]
            layout = Layout.dense(first, ROWS, last - first, place)
            out, state = attend(*parts, state, layout, window, scale=scale)
            pieces.append(out)
        return torch.cat(pieces, 2)

    right = run(CPU, torch.float64, None)
    for backend in ("flex", "blocks"):
        found = error(run(device, dtype, backend), right)
        yield _row(f"window attention: {backend}", dtype, found, ATTENTION_LIMITS[dtype])


@torch.no_grad()
def decode_checks(
    dtype: torch.dtype, device: torch.device, sizes: CheckSizes, shape: Shape
) -> Iterator[dict[str, Any]]:
    """Two layers of a shape; the last tokens one by one, across the end of a chunk."""
    window, chunk = sizes.window, sizes.chunk
    model = converted(shape, dtype, device, layers=2, window=window, sinks=sizes.sinks, chunk=chunk)
    N = sizes.tokens // chunk * chunk + sizes.alone // 2
    ids = torch.randint(10, model.config.vocab_size, (1, N), device=device)
    whole = model(input_ids=ids, past_key_values=AllMemCache(model.config)).logits
    right = whole[:, N - sizes.alone :].double().cpu()
    for how in ("eager", "graph", "compiled,graph") if device.type == "cuda" else ("eager",):
        cache, pieces = AllMemCache(model.config), []
        with use_decoding(how):
            for first in (0, *range(N - sizes.alone, N)):
                part = ids[:, : N - sizes.alone] if first == 0 else ids[:, first : first + 1]
                pieces.append(model(input_ids=part, past_key_values=cache, logits_to_keep=1).logits)
        found = error(torch.cat(pieces[1:], 1), right)
        yield _row(f"decode against prefill: {how}", dtype, found, MODEL_LIMITS[dtype])


def check_rows(
    device: torch.device, shape: Shape, sizes: CheckSizes | None = None
) -> Iterator[dict[str, Any]]:
    """All checks in bfloat16 and fp32."""
    sizes = CheckSizes() if sizes is None else sizes
    both = torch.bfloat16, torch.float32
    for dtype in both:
        yield from loop_checks(dtype, device, sizes)
    for dtype in both:
        yield from decode_checks(dtype, device, sizes, shape)
    # Last, since every case is compiled.
    for dtype in both:
        yield from attention_checks(dtype, device, sizes)
