"""AllMem with one thing changed: every choice of the paper's memory that a measurement can isolate.

Each is a change of ``MemoryConfig`` from its defaults, so that one configuration and a name make an
entrant of an arena.
"""

from __future__ import annotations

from typing import Any

__all__ = ["ABLATIONS", "ISOLATES"]

_TABLE: dict[str, tuple[dict[str, Any], str]] = {
    "no-normalisation": (
        {"norm": "none"},
        "whether fast weights need their rows brought back to a length at all",
    ),
    "post-update-normalisation": (
        {"norm": "post_update"},
        "the paper's place for it, between read and write, against LaCT's, after the write",
    ),
    "all-rows-normalised": (
        {"norm_matrices": ["gate", "up", "down"]},
        "leaving out the rows of F_down, which start small",
    ),
    "dot-loss": (
        {"loss": "dot"},
        "correcting what is said of a key already, against adding up (LaCT's loss)",
    ),
    "no-residual": ({"residual": False}, "a network that begins as the identity"),
    "linear-network": (
        {"network": "linear"},
        "the nonlinear network, against one matrix of the same rule",
    ),
    "no-momentum": ({"momentum": False}, "remembering the direction of earlier chunks' writes"),
    "no-clip": ({"clip": None}, "the limit on a chunk's gradient"),
    "muon": ({"optimizer": "muon"}, "steps of the gradient's size, against LaCT's of size one"),
    "no-convolution": ({"conv": 0}, "keys and values that know the tokens just before them"),
    "no-gate": ({"gate": False}, "the output gate"),
    "no-activation": ({"feature_activation": False}, "SiLU on queries and keys"),
    "value-activation": ({"value_activation": True}, "values without SiLU (LaCT has it)"),
    "keys-of-length-one": (
        {"qk_norm": "l2"},
        "norms of root mean square one with learned scales, against length one (LaCT)",
    ),
    "values-not-normalised": ({"normalize_values": False}, "the norm of values, beyond the paper"),
    "read-not-normalised": ({"output_norm": False}, "the norm of what is read"),
    "random-projections": (
        {"start": "random"},
        "projections that start as copies of the attention's",
    ),
    "shared-projections": (
        {"projections": "shared"},
        "projections of its own, against the attention's with a small trained difference",
    ),
    "low-rank-projections": ({"projections": "lowrank"}, "projections of full rank"),
    "small-chunks": ({"chunk": 8}, "what is lost by writing many tokens in one step"),
    "narrow-network": ({"width": 16}, "the network's width: few hidden units"),
    "wide-network": ({"width": 128}, "the network's width: many hidden units"),
    "large-steps": (
        {"step_ratio": 0.1},
        "the small steps at which F_gate and F_up start to learn beside F_down",
    ),
    "equal-steps": (
        {"base_rate": 0.001, "reference_chunk": 2048},
        "steps that start from what the network allows, against LaCT's number for all matrices",
    ),
}

ABLATIONS: dict[str, dict[str, Any]] = {name: changes for name, (changes, _) in _TABLE.items()}
"""By name, the options of ``MemoryConfig`` that differ from the default."""

ISOLATES: dict[str, str] = {name: line for name, (_, line) in _TABLE.items()}
"""By name, what a comparison with the default tells about."""
