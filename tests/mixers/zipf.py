"""A text whose words follow Zipf's law, for memories that are trained while they read: a few words
make up most of every mini-batch, so one direction of the inner loss is far steeper than the others,
and a step that is right for words as often as each other diverges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from allmem.layout import Layout
from allmem.mixers.heads import HeadMixer, Heads

__all__ = ["inner_losses"]

CPU = torch.device("cpu")
WORDS, TOKENS, CALLS = 1000, 4096, 8


@torch.no_grad()
def inner_losses(mixer: Any, loss: Callable[[Heads, Any], Tensor]) -> list[float]:
    """What the inner loss of a word is on average, before the text and after each eighth of it.

    Args:
        mixer: at its starting values, in fp32.
        loss: (keys and values of all words, the mixer's memory) -> [1, H, words].
    """
    assert isinstance(mixer, HeadMixer)
    # Hidden states of real text share a large mean.
    size = mixer.shell.projections.hidden_size
    words = torch.randn(WORDS, size) + torch.randn(size)
    law = 1 / torch.arange(1, WORDS + 1, dtype=torch.float64)
    text = words[torch.multinomial(law, TOKENS, replacement=True)][None]
    # At the start the convolutions change nothing, so words can be looked at out of their order.
    heads = mixer.shell.inputs(
        words[None], mixer.shell.begin(1, words.dtype), Layout.dense(0, 1, WORDS, CPU)
    )

    def expected(memory: Any) -> float:
        return float((loss(heads, memory)[0].mean(0).double() * law / law.sum()).sum())

    state: Any = mixer.init_state(1, text.dtype, CPU)
    losses = [expected(state.memory)]
    part = TOKENS // CALLS
    for start in range(0, TOKENS, part):
        layout = Layout.dense(start, 1, part, CPU)
        y, state = mixer(text[:, start : start + part], state, layout)
        assert bool(torch.isfinite(y).all())
        losses.append(expected(state.memory))
    return losses
