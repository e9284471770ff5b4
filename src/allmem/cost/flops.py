"""What reading costs in floating-point operations and bytes, in closed form, by length and by part.

Counted are matrix products and attention scores, a multiply-add as two: the projections, Q K^T and
the weighted sum for every key that a query sees, the inner loop of a memory, MLP and head. Causal
attention counts the keys behind a query, not the square. Logits count where they are needed: of the
last token of a prefill, and of every decoded token. Not counted is what is done number by number:
norms, activations, rotary positions, softmax, convolutions, gates, and once a chunk normalisation,
clip, momentum and write.

The model may stand on the meta device.

Letters: T tokens read, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from allmem.errors import AllMemError
from allmem.mixers.attention import FullMixer, causal_pairs
from allmem.mixers.base import Mixer
from allmem.models.layer import MixedAttention
from allmem.models.modeling import AllMemForCausalLM
from allmem.models.structure import decoder_layers

__all__ = ["HEAD", "MLP", "PARTS", "Flops", "OriginalAttention", "Reading", "mixing", "readings"]

MLP, HEAD = "MLP", "head"
PARTS = (
    "attention projections",
    "attention scores",
    "memory projections",
    "memory rates",
    "memory read",
    "memory key forward",
    "memory gradient",
    "memory",
    MLP,
    HEAD,
)
"""In the order in which tables show them; ``memory`` is that of mixers that do not say more."""

Flops = dict[str, int]
"""By part."""


def mixing(flops: Flops) -> int:
    """Of the attention and memory layers alone: all but MLP and head."""
    return sum(n for part, n in flops.items() if part not in (MLP, HEAD))


@dataclass(frozen=True)
class Reading:
    """One way to read with a model's weights."""

    name: str
    mixers: list[Mixer]
    """One for every decoder layer."""
    mlp: int
    """FLOPs for a token, of all layers."""
    head: int
    """FLOPs for the logits of a token: 2 D V."""

    def prefill(self, tokens: int) -> Flops:
        """Of reading the first ``tokens`` tokens, with the logits of the last one."""
        return _ordered({**self._layers(tokens), MLP: tokens * self.mlp, HEAD: self.head})

    def decode(self, before: int) -> Flops:
        """Of one more token after ``before`` others, with its logits."""
        earlier = self._layers(before)
        layers = {part: n - earlier[part] for part, n in self._layers(before + 1).items()}
        return _ordered({**layers, MLP: self.mlp, HEAD: self.head})

    def state_bytes(self, tokens: int, dtype: torch.dtype) -> int:
        """What is kept of ``tokens`` tokens, by a model in ``dtype``."""
        return sum(mixer.state_bytes(tokens, dtype) for mixer in self.mixers)

    def _layers(self, tokens: int) -> Flops:
        total: Counter[str] = Counter()
        for mixer in self.mixers:
            total.update(mixer.flops_by_part(tokens))
        return total


def readings(model: AllMemForCausalLM) -> tuple[Reading, Reading, Reading]:
    """The original model; the converted one with its memories left out; the converted one.

    Raises:
        AllMemError: for a mixture of experts that does not say how many of them a token meets.
    """
    mixed = model.mixers()
    mlp = sum(_mlp_flops(layer, model.config.text_config) for layer in decoder_layers(model.base))
    head: Any = model.get_output_embeddings()
    rest = mlp, 2 * head.weight.numel()
    return (
        Reading("full attention", [OriginalAttention(m) for m in mixed], *rest),
        Reading("window and sinks", [m.attention for m in mixed], *rest),
        Reading("AllMem", list(mixed), *rest),
    )


class OriginalAttention(FullMixer):
    """A layer's attention before conversion, to be counted: to all tokens, or in a layer that was
    local already to its own window."""

    def __init__(self, mixed: MixedAttention) -> None:
        super().__init__(mixed.attention.core, mixed.attention.shape, mixed.attention.rotary)
        self.reach = mixed.own_window

    def pairs(self, tokens: int) -> int:
        return causal_pairs(tokens, self.reach)

    def state_bytes(self, tokens: int, dtype: torch.dtype) -> int:
        seen = tokens if self.reach is None else min(tokens, self.reach)
        return super().state_bytes(seen, dtype)


def _ordered(flops: Flops) -> Flops:
    """As ``PARTS`` has them, those of other mixers last."""
    known = [part for part in PARTS if part in flops]
    return {part: flops[part] for part in [*known, *sorted(flops.keys() - set(PARTS))]}


def _mlp_flops(layer: nn.Module, config: Any) -> int:
    """Of a decoder layer for a token, but for its attention: two for every weight of a matrix, and
    of stacked experts only those that a token meets."""
    weights = 0
    for name, parameter in layer.named_parameters():
        if name.startswith("self_attn."):
            continue
        if parameter.dim() == 2:
            weights += parameter.numel()
        elif parameter.dim() == 3:
            met = getattr(config, "num_experts_per_tok", None)
            if met is None:
                raise AllMemError(
                    f"a {config.model_type} model has a weight of shape {tuple(parameter.shape)} "
                    "in its MLP, and its configuration names no num_experts_per_tok: its cost is "
                    "not known"
                )
            weights += parameter[0].numel() * int(met)
    return 2 * weights
