"""Going through ragged rows chunk by chunk (``Layout.rounds``): the tokens of one round, states of
which only some rows change, and what the rounds read, back in the slots of the rows.

Letters: R rows, N slots of a call, H heads, n tokens of a round, d features.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor

from allmem.layout import Layout, Round
from allmem.state import State

__all__ = ["assemble", "choose", "walk"]

AnyState = TypeVar("AnyState", bound=State)


def walk(rounds: list[Round], *sequences: Tensor) -> Iterator[tuple[Round, list[Tensor]]]:
    """Every round with its tokens of the sequences [R, H, N, ...]: [R, H, n, ...], zeros where a
    row has fewer than n.

    All rounds are taken apart at once: a slice or a gather for each would have a backward pass over
    the whole sequence for each.
    """
    if not rounds:
        return
    spans = [step.span for step in rounds]
    if all(span is not None for span in spans):
        sizes = [span.stop - span.start for span in spans if span is not None]
        parts = [x[:, :, : sum(sizes)].split(sizes, 2) for x in sequences]
    else:
        device = sequences[0].device
        places = [step.slots(device) for step in rounds]
        index = torch.cat([slots for slots, _ in places], 1)[:, None, :, None]
        keep = torch.cat([valid for _, valid in places], 1)[:, None, :, None]
        parts = [
            # ``where`` and not a product: a padding slot may hold anything, NaN too.
            torch.where(keep, x.gather(2, index.expand(-1, x.shape[1], -1, x.shape[3])), 0).split(
                [slots.shape[1] for slots, _ in places], 2
            )
            for x in sequences
        ]
    for step, *tokens in zip(rounds, *parts, strict=True):
        yield step, tokens


def choose(rows: Tensor, yes: AnyState, no: AnyState) -> AnyState:
    """``yes`` for the rows marked, ``no`` for the others."""
    other = no.tensors()
    first = next(iter(other.values()))
    marked = rows.to(first.device)
    return yes.with_tensors(
        {
            name: torch.where(marked.view(-1, *[1] * (t.dim() - 1)), t, other[name])
            for name, t in yes.tensors().items()
        }
    )


def assemble(pieces: list[Tensor], rounds: list[Round], layout: Layout) -> Tensor:
    """What the rounds read, back in the slots of the rows: [R, H, N, d]."""
    joined = pieces[0]
    if len(pieces) > 1:
        # Tokens before heads in memory, as the caller has them.
        joined = torch.cat([piece.transpose(1, 2) for piece in pieces], dim=1).transpose(1, 2)
    if all(step.span is not None for step in rounds) and layout.full:
        return joined
    # Where slot i of row r lies in ``joined``: its round's offset plus its place in that round.
    index = torch.zeros(layout.rows, layout.slots, dtype=torch.int64)
    offset = 0
    for step, piece in zip(rounds, pieces, strict=True):
        place = torch.arange(layout.slots)[None] - step.first[:, None]
        here = (place >= 0) & (place < step.count[:, None])
        index = torch.where(here, offset + place, index)
        offset += piece.shape[2]
    index = index.to(joined.device)[:, None, :, None]
    found = joined.gather(2, index.expand(-1, joined.shape[1], -1, joined.shape[3]))
    return torch.where(layout.valid[:, None, :, None], found, 0)
