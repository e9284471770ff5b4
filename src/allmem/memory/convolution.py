"""Causal depthwise convolution over ragged rows, with the last inputs as its state."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from allmem.layout import Layout

__all__ = ["Convolutions", "causal_convolution", "last_inputs"]


class Convolutions(nn.ParameterDict):
    """The convolutions of q, k and v, by those names: taps [K, F] each, at the start the identity.

    Args:
        taps: K.
        features: F of q, of k and of v.
    """

    def __init__(self, taps: int, features: tuple[int, int, int]) -> None:
        names = zip(("q", "k", "v"), features, strict=True)
        super().__init__({name: nn.Parameter(torch.empty(taps, n)) for name, n in names})

    @torch.no_grad()
    def reset_parameters(self) -> None:
        for taps in self.values():
            taps.zero_()
            taps[0] = 1

    def begin(self, rows: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """The tails before the first token, {name: [R, K - 1, F]}; none for K = 1."""
        return {
            name: torch.zeros(rows, len(taps) - 1, taps.shape[1], dtype=dtype, device=taps.device)
            for name, taps in self.items()
            if len(taps) > 1
        }

    def apply_to(
        self, projected: dict[str, Tensor], tails: dict[str, Tensor], layout: Layout
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """q, k and v [R, N, F], zero in padding slots, convolved; and their new tails."""
        outputs, after = {}, {}
        for name, taps in self.items():
            outputs[name], tail = causal_convolution(projected[name], taps, tails.get(name), layout)
            if tail is not None:
                after[name] = tail
        return outputs, after


def causal_convolution(
    x: Tensor, taps: Tensor, tail: Tensor | None, layout: Layout
) -> tuple[Tensor, Tensor | None]:
    """y_t = sum_j taps[j] * x_{t-j}, where nothing stands before a document's first token.

    Args:
        x: [R, N, F], zero in padding slots.
        taps: [K, F]; ``taps[0]`` multiplies the current token.
        tail: [R, K - 1, F], the row's last inputs of earlier calls, oldest first; ``None`` for K =
        1.

    Returns:
        y [R, N, F] and the new tail.
    """
    taps = taps.to(x.dtype)
    if tail is None:
        return x * taps[0], None
    reach = tail.shape[1]
    slots = x.shape[1]
    before = torch.cat([tail.to(x.dtype), x], dim=1)  # [R, K - 1 + N, F]
    if slots == 1:
        return (before * taps.flip(0)).sum(1, keepdim=True), last_inputs(before, reach, layout)
    y = x * taps[0]
    for j in range(1, reach + 1):
        earlier = before[:, reach - j : reach - j + slots]
        if torch.is_grad_enabled():
            y = torch.addcmul(y, earlier, taps[j])
        else:
            y.addcmul_(earlier, taps[j])
    return y, last_inputs(before, reach, layout)


def last_inputs(before: Tensor, reach: int, layout: Layout) -> Tensor:
    """The ``reach`` inputs that end at every row's last token, [R, reach, F].

    Args:
        before: [R, reach + N, F], what was kept before the call and the inputs of the call.
    """
    if layout.full:
        # A copy, since a view would keep all inputs of the call as long as the state lives.
        # Contiguous, also a single row, lest compiled code meets other strides than after a token.
        return before[:, before.shape[1] - reach :].clone(memory_format=torch.contiguous_format)
    index = layout.lengths[:, None] + torch.arange(reach)[None]
    index = index.to(before.device)[..., None].expand(-1, -1, before.shape[2])
    return before.gather(1, index)
