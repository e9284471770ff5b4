"""RoPE scaling without training: how a pretrained model with full attention is made to read further
than it was trained for. A memory of constant size is worth something there only if it beats this.

    linear   positions divided by the factor (position interpolation, arXiv:2306.15595)
    ntk      a larger base, so that only slow features are stretched by the factor (NTK-aware)
    yarn     fast features left alone, slow ones divided, a temperature on attention
             (arXiv:2309.00071)

All are fixed for a model, so what was read stays right when the text goes on.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, Self

from transformers import PreTrainedModel

from allmem.errors import AllMemError, unknown_name

__all__ = ["RopeScaling", "scaled"]

KINDS = ("linear", "ntk", "yarn")


@dataclass(frozen=True)
class RopeScaling:
    """Which scaling, and how many times further than trained.

    Raises:
        AllMemError: on an unknown kind, or a factor that is not above 1.
    """

    kind: str
    factor: float

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise AllMemError(unknown_name("RoPE scaling", self.kind, KINDS))
        if not (math.isfinite(self.factor) and self.factor > 1):
            raise AllMemError(
                f"RoPE scaling {self.kind}: the factor {self.factor:g} must be above 1"
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """From ``yarn:4``.

        Raises:
            AllMemError: if it is not of that form.
        """
        kind, _, factor = text.partition(":")
        try:
            times = float(factor)
        except ValueError:
            raise AllMemError(
                f"RoPE scaling {text!r} is not of the form kind:factor, such as yarn:4"
            ) from None
        return cls(kind.strip(), times)

    def __str__(self) -> str:
        return f"{self.kind} {self.factor:g}"


def scaled(model: PreTrainedModel, scaling: RopeScaling) -> PreTrainedModel:
    """The same model, with the same weights in the same memory, and its positions scaled.

    Raises:
        AllMemError: if it has no RoPE, one that is scaled already, or one for each kind of layers.
    """
    config: Any = model.config
    backbone: Any = model.base_model
    name = type(model).__name__
    rope = getattr(config, "rope_parameters", None)
    if rope is None or not hasattr(backbone, "rotary_emb"):
        raise AllMemError(f"{name} has no RoPE that could be scaled")
    if rope.get("rope_type") != "default":
        how = repr(rope["rope_type"]) if "rope_type" in rope else "one for each kind of layers"
        raise AllMemError(
            f"{name} cannot be scaled: its RoPE is {how}; only a plain one is known here"
        )
    config = copy.deepcopy(config)
    trained: int = config.max_position_embeddings
    if scaling.kind == "ntk":
        size = backbone.rotary_emb.inv_freq.numel() * 2
        rope = {**rope, "rope_theta": rope["rope_theta"] * scaling.factor ** (size / (size - 2))}
    else:
        rope = {
            **rope,
            "rope_type": scaling.kind,
            "factor": scaling.factor,
            "original_max_position_embeddings": trained,
        }
    config.rope_parameters = rope
    config.max_position_embeddings = int(trained * scaling.factor)
    inner, outer = _twin(backbone), _twin(model)
    device = backbone.rotary_emb.inv_freq.device
    inner.rotary_emb = type(backbone.rotary_emb)(config=config).to(device)
    inner.config = outer.config = config
    setattr(outer, model.base_model_prefix, inner)
    return outer


def _twin(module: PreTrainedModel) -> Any:
    """Another module with the same parts, some of which may then be exchanged."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin
