"""A text of random queries, keys and values, and feeding it to an attention in any split.

Padding slots are filled with NaN wherever a test does not say otherwise: nothing may depend on
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from allmem.attention import full_attention, window_attention
from allmem.config import WindowConfig
from allmem.layout import Layout

CPU = torch.device("cpu")
SCALE = 0.4


@dataclass
class Text:
    """Leaf tensors of R rows and their lengths; ``q_far`` is what sinks are scored by far away."""

    q: Tensor
    q_far: Tensor
    k: Tensor
    v: Tensor
    lengths: Tensor
    """[R] tokens of each row."""

    @classmethod
    def random(
        cls,
        lengths: Sequence[int],
        q_heads: int = 4,
        kv_heads: int = 2,
        head_dim: int = 5,
        value_dim: int = 3,
        *,
        dtype: torch.dtype = torch.float64,
        grad: bool = False,
        seed: int = 0,
    ) -> Text:
        generator = torch.Generator().manual_seed(seed)

        def draw(heads: int, dim: int) -> Tensor:
            shape = len(lengths), heads, max(lengths), dim
            x = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
            return x.requires_grad_(grad)

        q, q_far = draw(q_heads, head_dim), draw(q_heads, head_dim)
        k, v = draw(kv_heads, head_dim), draw(kv_heads, value_dim)
        return cls(q, q_far, k, v, torch.tensor(lengths))

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return self.q, self.q_far, self.k, self.v

    def q_sink(self, window: WindowConfig) -> Tensor:
        """As RoPE makes it: equal to ``q`` up to position S + W - 1."""
        far = torch.arange(self.q.shape[2]) > window.sinks + window.window - 1
        return torch.where(far[:, None], self.q_far, self.q)


def feed(
    text: Text,
    window: WindowConfig | None,
    splits: Sequence[Sequence[int]] | None = None,
    *,
    backend: str | None = None,
    state: Any = None,
    padding: float = float("nan"),
) -> tuple[Tensor, Any]:
    """Outputs [R, Q, T, Ev] (zero beyond a row's length) and final state.

    Args:
        text: what to read.
        window: ``None`` for full attention.
        splits: tokens of every row in every call; ``None`` for one call.
        backend: as the attention takes it.
        state: to begin with.
        padding: what padding slots hold.
    """
    start = torch.zeros_like(text.lengths)
    outputs: list[list[Tensor]] = [[] for _ in text.lengths]
    for counts in [text.lengths.tolist()] if splits is None else splits:
        layout = Layout.ragged(start, torch.tensor(counts), CPU)
        slots = layout.positions.clamp(max=text.q.shape[2] - 1)

        def cut(x: Tensor, slots: Tensor = slots, layout: Layout = layout) -> Tensor:
            index = slots[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])
            return torch.where(layout.valid[:, None, :, None], x.gather(2, index), padding)

        q, k, v = cut(text.q), cut(text.k), cut(text.v)
        if window is None:
            out, state = full_attention(q, k, v, state, layout, scale=SCALE, backend=backend)
        else:
            q_sink = cut(text.q_sink(window))
            out, state = window_attention(
                q, q_sink, k, v, state, layout, window, scale=SCALE, backend=backend
            )
        assert out.isfinite().all()
        for row, count in enumerate(counts):
            outputs[row].append(out[row, :, :count])
        start = start + torch.tensor(counts)
    joined = [torch.cat(parts, 1).transpose(0, 1) for parts in outputs]
    padded = torch.nn.utils.rnn.pad_sequence(joined, batch_first=True)  # [R, T, Q, Ev]
    return padded.transpose(1, 2), state


def token_by_token(lengths: Sequence[int]) -> list[list[int]]:
    """Splits that give every row one token a call, until it has no more."""
    return [[int(t < length) for length in lengths] for t in range(max(lengths))]


def gradients(out: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    """Of a fixed random sum of the outputs; zeros where a leaf is not used."""
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
    found = torch.autograd.grad((out * weights).sum(), leaves, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True)]


def assert_close(got: Tensor | Sequence[Tensor], expected: Tensor | Sequence[Tensor]) -> None:
    """Equal to 1e-10, absolutely: all numbers of these tests are of order one."""
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
