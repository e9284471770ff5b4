"""What stands around the rule of every other memory (``allmem.mixers.heads``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Self, get_args

from allmem.config.options import require_choice, require_positive
from allmem.config.projections import KeyNorm, ProjectionOptions
from allmem.errors import AllMemError

__all__ = ["Fusion", "Gate", "HeadOptions"]

Gate = Literal["sigmoid", "silu", "none"]
Fusion = Literal["gate", "stack", "context"]


@dataclass(frozen=True)
class HeadOptions(ProjectionOptions):
    """What the memories other than the paper's let choose about their heads: the same projections,
    convolutions and gate around each rule, so that a comparison is one of the rules.

    Raises:
        AllMemError: on a value outside its range.
    """

    state_sizes: ClassVar[tuple[str, ...]] = ("key_dim", "value_dim")

    heads: int | None = None
    """Memory heads: H; ``None`` for as many as the attention has KV heads."""
    key_dim: int | None = None
    """Size of a head's queries and keys: d; ``None`` for D / H."""
    value_dim: int | None = None
    """Size of a head's values: dv; ``None`` for d."""
    conv: int = 4
    """Taps of the causal depthwise convolution after the projections; 0 for none."""
    activation: bool = True
    """Whether q, k and v go through SiLU after it."""
    qk_norm: KeyNorm = "l2"
    """What q and k are divided by, head by head: their length, their root mean square (with a
    learned scale) or nothing."""
    gate: Gate = "sigmoid"
    """The output gate: 2 sigmoid(W_g x), which starts at one; SiLU(W_g x), which starts random; or
    none."""
    fusion: Fusion = "gate"
    """How the memory meets the attention: its output is added to the attention's (``gate``) or to
    what the attention reads (``stack``), or stands among the attention's keys and values
    (``context``); see ``allmem.mixers.layer``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        require_positive(name, heads=self.heads, key_dim=self.key_dim, value_dim=self.value_dim)
        require_choice(name, "gate", self.gate, get_args(Gate))
        require_choice(name, "qk_norm", self.qk_norm, get_args(KeyNorm))
        require_choice(name, "fusion", self.fusion, get_args(Fusion))
        if self.fusion == "stack" and self.projections == "shared":
            raise AllMemError(
                f"{name}: with fusion = 'stack' the memory reads before the attention projects, so "
                "projections = 'shared' cannot be had with it; choose 'full' or 'lowrank'"
            )
        if not isinstance(self.conv, int) or self.conv < 0:
            raise AllMemError(f"{name}: conv = {self.conv!r} must be a number of taps, 0 for none")

    def sized(self, hidden_size: int, kv_heads: int) -> Self:
        """These options with every size filled in for a model.

        Args:
            hidden_size: D.
            kv_heads: KV heads of the attention.

        Raises:
            AllMemError: if D is not divisible by H and ``key_dim`` is not given.
        """
        heads = self.heads or kv_heads
        if self.key_dim is None and hidden_size % heads:
            raise AllMemError(
                f"{type(self).__name__}: hidden size {hidden_size} is not divisible by {heads} "
                "memory heads; give key_dim, or another number of heads"
            )
        key_dim = self.key_dim or hidden_size // heads
        return self.replace(heads=heads, key_dim=key_dim, value_dim=self.value_dim or key_dim)
