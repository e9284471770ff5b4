"""What every memory with projections of its own lets choose, whatever its rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from allmem.config.options import Options, require_choice, require_positive

__all__ = ["KeyNorm", "ProjectionOptions", "Projections", "ReadScope", "Start", "WriteScope"]

Projections = Literal["full", "lowrank", "shared"]
Start = Literal["attention", "random"]
WriteScope = Literal["all", "evicted"]
ReadScope = Literal["all", "lost"]
KeyNorm = Literal["l2", "rms", "none"]


@dataclass(frozen=True)
class ProjectionOptions(Options):
    """What every memory lets choose about its projections, and about the tokens that it writes and
    that read it.

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
    read_scope: ReadScope = "all"
    """Which tokens read: all, or only those whose attention has ``lost`` some token before them,
    from position W + S on. Then a text that fits into the window is read as by the base model,
    exactly, whatever the memory learned."""

    def __post_init__(self) -> None:
        name = type(self).__name__
        require_positive(name, rank=self.rank)
        require_choice(name, "projections", self.projections, get_args(Projections))
        require_choice(name, "start", self.start, get_args(Start))
        require_choice(name, "write_scope", self.write_scope, get_args(WriteScope))
        require_choice(name, "read_scope", self.read_scope, get_args(ReadScope))
