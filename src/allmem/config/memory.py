"""The paper's memory (``allmem.memory``), and every choice in which another may differ from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from allmem.config.options import require_choice, require_positive
from allmem.config.projections import KeyNorm, ProjectionOptions
from allmem.errors import AllMemError

__all__ = ["MATRICES", "Loss", "MemoryConfig", "Network", "Norm", "Optimizer"]

Norm = Literal["internal", "post_update", "none"]
Loss = Literal["mse", "dot"]
Network = Literal["swiglu", "linear"]
Optimizer = Literal["sgd", "muon"]

MATRICES: dict[str, tuple[str, ...]] = {"swiglu": ("gate", "up", "down"), "linear": ("down",)}
"""The fast matrices of each memory network, in the order in which rates and states list them."""


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
    output_norm: bool = True
    """Whether what is read gets a head norm (paper section 3.2). Without it a read keeps its size:
    small where nothing like the query was written, so that a memory of nothing says next to
    nothing."""
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
