"""What a user can choose about the short-term and the long-term memory: two small frozen
dataclasses.

Plain Python on purpose: nothing here imports torch or transformers, so that the command line can
validate its arguments before it loads either. ``allmem.models.configuration.AllMemConfig`` nests
both in a checkpoint's ``config.json``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, get_args

from allmem.errors import AllMemError, unknown_name

__all__ = [
    "HeadOptions",
    "MemoryConfig",
    "Options",
    "ProjectionOptions",
    "WindowConfig",
    "check_chunk_fits_window",
]

Projections = Literal["full", "lowrank", "shared"]
Norm = Literal["internal", "post_update", "none"]
Loss = Literal["mse", "dot"]
Network = Literal["swiglu", "linear"]
Start = Literal["attention", "random"]
WriteScope = Literal["all", "evicted"]
Gate = Literal["sigmoid", "silu", "none"]
KeyNorm = Literal["l2", "rms", "none"]
Fusion = Literal["gate", "stack", "context"]
Optimizer = Literal["sgd", "muon"]

MATRICES: dict[str, tuple[str, ...]] = {"swiglu": ("gate", "up", "down"), "linear": ("down",)}
"""The fast matrices of each memory network, in the order in which rates and states list them."""


class Options:
    """Reading from and writing to JSON-able dictionaries, with errors that name the nearest key."""

    state_sizes: ClassVar[tuple[str, ...]] = ()
    """Options that decide how large a memory's state is, the first one leading: what
    ``allmem.mixers.matching`` solves for."""
    parameter_sizes: ClassVar[tuple[str, ...]] = ()
    """Options that decide how many parameters it has beside them."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
        for key in values:
            if key not in names:
                raise AllMemError(unknown_name(f"{cls.__name__} key", key, names))
        lists = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**lists)

    def to_dict(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)  # type: ignore[call-overload]
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    def replace(self, **changes: Any) -> Self:
        """A copy with some values changed; validated again."""
        return type(self).from_dict({**self.to_dict(), **changes})


def require_positive(owner: str, **values: int | None) -> None:
    for name, value in values.items():
        if value is not None and (
            not isinstance(value, int) or isinstance(value, bool) or value < 1
        ):
            raise AllMemError(f"{owner}: {name} = {value!r} must be a positive whole number")


def require_choice(owner: str, name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise AllMemError(f"{owner}: {unknown_name(name, value, choices)}")


@dataclass(frozen=True)
class WindowConfig(Options):
    """The short-term memory: which keys a query sees (paper section 3.2).

    A query at position ``t`` sees keys ``j <= t`` with ``t - j < window`` or ``j < sinks``.

    Raises:
        AllMemError: if ``window < 1``, ``sinks < 0`` or ``sinks >= window``.
    """

    window: int
    """Keys seen behind a token, itself included: W."""
    sinks: int = 0
    """First tokens of a document that stay visible for ever: S."""

    def __post_init__(self) -> None:
        require_positive("WindowConfig", window=self.window)
        if not isinstance(self.sinks, int) or isinstance(self.sinks, bool) or self.sinks < 0:
            raise AllMemError(
                f"WindowConfig: sinks = {self.sinks!r} must be a whole number, 0 or more"
            )
        if self.sinks >= self.window:
            raise AllMemError(
                f"WindowConfig: sinks = {self.sinks} must be smaller than window = {self.window}; "
                f"choose at most {self.window - 1} sinks (a quarter of the window is plenty)"
            )


@dataclass(frozen=True)
class ProjectionOptions(Options):
    """What every memory lets choose about its projections, and about the tokens that it writes.

    Raises:
        AllMemError: on a value outside its range.
    """

    parameter_sizes: ClassVar[tuple[str, ...]] = ("rank",)

    projections: Projections = "full"
    """How q, k, v, gate and output are projected: trained full-rank matrices, trained products of
    rank ``rank``, or the attention's own frozen q, k, v with a trained difference of rank
    ``rank``."""
    start: Start = "attention"
    """Whether the projections start from the attention's weights or at random (an ablation)."""
    rank: int = 32
    """Rank of the ``lowrank`` and ``shared`` projections."""
    write_scope: WriteScope = "all"
    """Whether every token is written as it is read, or only once attention no longer sees it
    (``evicted``, as in Artificial Hippocampus Networks; see ``allmem.mixers.evicted``)."""

    def __post_init__(self) -> None:
        name = type(self).__name__
        require_positive(name, rank=self.rank)
        require_choice(name, "projections", self.projections, get_args(Projections))
        require_choice(name, "start", self.start, get_args(Start))
        require_choice(name, "write_scope", self.write_scope, get_args(WriteScope))
        if self.write_scope == "evicted" and self.projections == "shared":
            raise AllMemError(
                f"{name}: write_scope = 'evicted' writes tokens that attention projected long ago, "
                "so projections = 'shared' cannot be had with it; choose 'full' or 'lowrank'"
            )


@dataclass(frozen=True)
class MemoryConfig(ProjectionOptions):
    """The long-term memory: a network trained by gradient descent while the model reads.

    The defaults are the paper's method with the starting values that trained best; every other
    value is an ablation. Sizes left ``None`` follow the model (see ``MemoryConfig.sized``).

    Raises:
        AllMemError: on a value outside its range, naming the value and the remedy.
    """

    state_sizes: ClassVar[tuple[str, ...]] = ("head_dim", "width")

    chunk: int = 2048
    """Tokens written into memory in one step: C (paper section 5.3)."""
    heads: int | None = None
    """Memory heads: H; ``None`` for as many as the attention has KV heads (paper section 3.2)."""
    head_dim: int | None = None
    """Size of a memory head: d; ``None`` for D / H (paper section 3.2)."""
    width: int | None = None
    """Hidden width of the memory network: h; ``None`` for d."""
    network: Network = "swiglu"
    """``swiglu`` (paper section 3.2) or ``linear``: M(z) = z + F_down z."""
    residual: bool = True
    """Whether the network's input is added to its output."""
    loss: Loss = "mse"
    """Inner loss: ``mse``: 1/2 |M(k) - v|^2, or ``dot``: -M(k) . v (as LaCT)."""
    norm: Norm = "internal"
    """Row normalisation of fast weights: between read and write (``internal``, paper), after the
    write (``post_update``, as LaCT) or ``none``."""
    norm_matrices: tuple[str, ...] = ("gate", "up")
    """The matrices that it covers. ``down`` is left out: it starts small and would be pinned
    there."""
    momentum: bool = True
    clip: float | None = 1.0
    """Largest Frobenius norm of a chunk's gradient, per head and matrix: tau; ``None`` for no
    clip."""
    optimizer: Optimizer = "sgd"
    """What is written: a chunk's gradient with its momentum (``sgd``, paper), or that with all its
    singular values brought near one (``muon``, as LaCT; see ``allmem.memory.muon``)."""
    conv: int = 4
    """Taps of the causal depthwise convolution after the projections; 0 for none."""
    feature_activation: bool = True
    """Whether q and k go through SiLU before their norm (paper section 3.2)."""
    qk_norm: KeyNorm = "rms"
    """What q and k are divided by, head by head: their root mean square, with a learned scale
    (paper section 3.2), their length (as LaCT) or nothing."""
    value_activation: bool = False
    """Whether v goes through SiLU (as LaCT)."""
    normalize_values: bool = True
    """Whether v gets a head norm too (beyond the paper)."""
    gate: bool = True
    """The parallel output gate, 2 sigmoid(W_g x)."""
    step: float = 0.1
    """Inner step at the start for ``down``, as a fraction of the largest stable one for one
    token."""
    step_ratio: float = 0.003
    """Step of the other matrices, as a fraction of the one of ``down``. Small, because keys of real
    text share a large mean: a tenth overshoots a hundredfold (benchmarks/results/inner_step.md)."""
    base_rate: float | None = None
    """Where the rates of all matrices start, before they are scaled for the chunk, in place of what
    ``step`` and ``step_ratio`` make of the network (LaCT: 0.001)."""
    reference_chunk: int = 64
    """C_ref: rates are scaled by min(1, C_ref / C), since a chunk's gradient is a sum over its
    tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        name = "MemoryConfig"
        require_positive(
            name,
            chunk=self.chunk,
            heads=self.heads,
            head_dim=self.head_dim,
            width=self.width,
            reference_chunk=self.reference_chunk,
        )
        require_choice(name, "network", self.network, get_args(Network))
        require_choice(name, "loss", self.loss, get_args(Loss))
        require_choice(name, "norm", self.norm, get_args(Norm))
        require_choice(name, "optimizer", self.optimizer, get_args(Optimizer))
        require_choice(name, "qk_norm", self.qk_norm, get_args(KeyNorm))
        for matrix in self.norm_matrices:
            require_choice(name, "norm_matrices entry", matrix, MATRICES["swiglu"])
        if self.clip is not None and not self.clip > 0:
            raise AllMemError(f"{name}: clip = {self.clip!r} must be positive, or null for no clip")
        if not isinstance(self.conv, int) or self.conv < 0:
            raise AllMemError(f"{name}: conv = {self.conv!r} must be a number of taps, 0 for none")
        if not self.step > 0 or not self.step_ratio > 0:
            raise AllMemError(
                f"{name}: step = {self.step!r} and step_ratio = {self.step_ratio!r} must be "
                "positive"
            )
        if self.base_rate is not None and not self.base_rate > 0:
            raise AllMemError(
                f"{name}: base_rate = {self.base_rate!r} must be positive, or null for a start "
                "from step and step_ratio"
            )

    @property
    def matrices(self) -> tuple[str, ...]:
        """Names of the fast matrices, in their fixed order."""
        return MATRICES[self.network]

    def sized(self, hidden_size: int, kv_heads: int) -> MemoryConfig:
        """This configuration with every size filled in for a model.

        Args:
            hidden_size: D.
            kv_heads: KV heads of the attention.

        Raises:
            AllMemError: if D is not divisible by H and ``head_dim`` is not given, or a linear
                network is given another width than its heads.
        """
        heads = self.heads or kv_heads
        if self.head_dim is None and hidden_size % heads:
            raise AllMemError(
                f"MemoryConfig: hidden size {hidden_size} is not divisible by {heads} memory "
                "heads; "
                "give head_dim, or another number of heads"
            )
        head_dim = self.head_dim or hidden_size // heads
        width = self.width or head_dim
        if self.network == "linear" and width != head_dim:
            raise AllMemError(
                f"MemoryConfig: a linear network maps heads to heads, so width = {width} must be "
                f"head_dim = {head_dim}; leave it out"
            )
        return self.replace(heads=heads, head_dim=head_dim, width=width)


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


def check_chunk_fits_window(chunk: int, window: int) -> None:
    """Refuse a window smaller than the chunk: tokens would be in no store.

    A token leaves the window W steps after it was read and enters memory at the end of its chunk,
    at most C steps after.

    Raises:
        AllMemError: if ``window < chunk``.
    """
    if window < chunk:
        raise AllMemError(
            f"window = {window} is smaller than chunk = {chunk}: tokens that left the window and "
            "are not "
            f"yet written would be in no memory; choose chunk <= {window}"
        )
