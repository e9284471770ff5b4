"""What is to be reached, and what a run says of it. Plain Python: knows nothing of torch, nor of
how anything is measured.

A target stands here once. A run reports a *finding* for it: the value that it measured and for what
case, or why there is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["TARGETS", "Finding", "Target", "target_rows", "unmeasured", "verdict"]


@dataclass(frozen=True)
class Target:
    """A bound on something that can be measured."""

    what: str
    bound: float
    at_most: bool = False
    """Whether smaller is better."""
    unit: str = "times"
    """``times``, ``s``, or ``%`` for a share that is kept as a fraction."""

    def shown(self, value: float) -> str:
        """A value as people read it."""
        if self.unit == "%":
            return f"{100 * value:.3g} %"
        return f"{value:.3g} {self.unit}" if self.unit == "s" else f"{value:.3g}"


TARGETS = {
    "loop forward": Target("inner loop forward, of the rate of a matrix product", 0.6, unit="%"),
    "loop both": Target("inner loop forward and backward, of that rate", 0.5, unit="%"),
    "titans": Target("tokens/s of a memory layer, of titans-pytorch's", 10),
    "prefill 4k": Target("speed of prefill at 4k, of full attention's", 1),
    "prefill 32k": Target("speed of prefill at 32k, of full attention's", 3),
    "prefill growth": Target("time per token of prefill at 64k, of that at 8k", 1.1, at_most=True),
    "decode growth": Target("time per decoded token at 128k, of that at 1k", 1.05, at_most=True),
    "million": Target("resident memory reading 1M tokens, of reading 32k", 1.02, at_most=True),
    "gpu prefill": Target("speed of prefill at 128k on a GPU, of flash attention's", 5),
    "gpu batch": Target("decode batch that fits at 128k, of full attention's", 15),
    "step": Target("distillation step: its FLOPs at the matrix rate, of its time", 0.5, unit="%"),
    "startup": Target("allmem --help, and any usage error", 0.5, at_most=True, unit="s"),
}


@dataclass(frozen=True)
class Finding:
    """What a run says of a target."""

    target: str
    """A key of ``TARGETS``."""
    case: str
    """Of what: shape, precision, device."""
    measured: float | None
    """``None`` if it was not measured."""
    remark: str = ""
    """Spread, or why it was not measured."""


def unmeasured(target: str, why: str, case: str = "") -> Finding:
    """For a run that could not tell."""
    return Finding(target, case, None, why)


def verdict(finding: Finding) -> str:
    """``met``, ``missed`` or ``not measured``; a value that is no number is missed."""
    if finding.measured is None:
        return "not measured"
    target = TARGETS[finding.target]
    if target.at_most:
        return "met" if finding.measured <= target.bound else "missed"
    return "met" if finding.measured >= target.bound else "missed"


def target_rows(
    findings: Iterable[Finding], wanted: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """One row for each finding, in the order of the targets; targets in ``wanted`` that no finding
    names get a row that says so."""
    found = list(findings)
    rows = []
    for key, target in TARGETS.items():
        own = [finding for finding in found if finding.target == key]
        if not own and key in (wanted or ()):
            own = [unmeasured(key, "did not run")]
        for finding in own:
            value = finding.measured
            rows.append(
                {
                    "what": target.what,
                    "target": ("≤ " if target.at_most else "≥ ") + target.shown(target.bound),
                    "measured": "" if value is None else target.shown(value),
                    "verdict": verdict(finding),
                    "case": finding.case,
                    "remark": finding.remark,
                }
            )
    return rows
