"""A small arena on the two-layer recall teacher: seconds, in which nothing is learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from allmem.arena import Arena, ArenaConfig

TEACHER = Path(__file__).parents[1] / "fixtures" / "recall_teacher"
REFERENCE: dict[str, Any] = {"head_dim": 16, "width": 32}
STEPS = 3


def make_config(output: Path | str, **changes: Any) -> ArenaConfig:
    """Two entrants, two seeds."""
    values: dict[str, Any] = {
        "teacher": str(TEACHER),
        "output": str(output),
        "dtype": "float32",
        "device": "cpu",
        "sizes": {"window": 32, "chunk": 32},
        "recall": {},
        "training": {
            "steps": STEPS,
            "batch": 1,
            "stage": "kl",
            "kl_lr": 3e-3,
            "positions": "all",
            "checkpoint_steps": 1,
        },
        "entrants": {"allmem": {"options": REFERENCE}, "gated_deltanet": None},
        "seeds": [0, 1],
        "evaluation": {"sequences": 8},
    }
    return ArenaConfig.from_dict({**values, **changes})


def make_arena(output: Path | str, **changes: Any) -> Arena:
    return Arena(make_config(output, **changes))
